"""What training leaves, as one .npz file: arrays as they are, everything else as JSON."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from vqdistill.compiler.plan import CompilePlan
from vqdistill.compiler.trained import Trained
from vqdistill.data.flat import READ_ERRORS
from vqdistill.distill.terms import QueryTerms
from vqdistill.errors import InvalidInput, VqdistillError
from vqdistill.index.fields import Fields
from vqdistill.index.policy import SearchPolicy
from vqdistill.index.spec import VERSION
from vqdistill.model.adapter import QueryAdapter
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.model.learned import LearnQueries
from vqdistill.model.space import Space
from vqdistill.types import Codes, Metric

_PARTS = {
    "space": Space,
    "query_adapter": QueryAdapter,
    "verify_adapter": QueryAdapter,
    "terms": QueryTerms,
    "list_terms": QueryTerms,
    "learned": LearnQueries,
}
"""Fields of a model that are values with arrays of their own."""

_QUERIES = ("held_out", "reserved")
_CODES = ("lists", "codes")

Arrays = dict[str, npt.NDArray[Any]]


def save_trained(trained: Trained, path: Path) -> None:
    """Write to `path`, replacing what is there; raises as `write_trained`."""
    with path.open("wb") as file:
        write_trained(trained, file)


def write_trained(trained: Trained, file: IO[bytes]) -> None:
    """Write to a file.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    arrays: Arrays = {}
    plain: dict[str, Any] = {}
    _take_apart(trained.model, "model", arrays, plain)
    search = trained.search.to_json()
    for name in _QUERIES:
        if (queries := getattr(trained, name)) is not None:
            arrays[name] = queries
    if trained.codes is not None:
        arrays |= {name: getattr(trained.codes, name) for name in _CODES}
    meta: dict[str, Any] = {"plan": trained.plan.to_json(), "report": trained.report, "search": search, "plain": plain}
    meta["pseudo"] = trained.pseudo
    text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez(file, meta=text, **arrays)  # type: ignore[arg-type]


def load_trained(path: Path) -> Trained:
    """Read what `save_trained` wrote.

    Raises
    ------
    InvalidInput
        If it is anything else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop("meta").tobytes())
        plan = CompilePlan.from_json(meta["plan"])
        model = _put_together(IvfPqModel, "model", arrays, meta["plain"])
        search = SearchPolicy.parse(
            Fields(meta["search"], "search"), version=VERSION, nlist=model.nlist, has_dense=plan.dense != "none"
        )
        queries = {name: arrays.get(name) for name in _QUERIES}
        codes = Codes(*(arrays[name] for name in _CODES)) if "codes" in arrays else None
        report, pseudo = meta["report"], bool(meta["pseudo"])
        return Trained(plan=plan, model=model, report=report, search=search, pseudo=pseudo, codes=codes, **queries)
    except (*READ_ERRORS, KeyError, TypeError, AttributeError, VqdistillError) as error:
        raise InvalidInput(f"{path} is damaged: {error}") from None


def _take_apart(value: Any, name: str, arrays: Arrays, plain: dict[str, Any]) -> None:
    for field in fields(value):
        key, part = f"{name}.{field.name}", getattr(value, field.name)
        if isinstance(part, np.ndarray):
            arrays[key] = part
        elif field.name in _PARTS and part is not None:
            plain[key] = "part"
            _take_apart(part, key, arrays, plain)
        else:
            plain[key] = part


def _put_together(kind: Any, name: str, arrays: Arrays, plain: dict[str, Any]) -> Any:
    values: dict[str, Any] = {}
    for field in fields(kind):
        key = f"{name}.{field.name}"
        if key in arrays:
            values[field.name] = arrays[key]
        elif field.name in _PARTS and plain[key] is not None:
            values[field.name] = _put_together(_PARTS[field.name], key, arrays, plain)
        else:
            values[field.name] = Metric.parse(plain[key]) if field.name == "metric" else plain[key]
    return kind(**values)
