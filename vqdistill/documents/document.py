"""Documents as values, and the checks of what may be stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vqdistill.errors import InvalidInput

Id = str | int
KINDS = ("str", "int64")
"""Of external ids, as an index has them; ids that are row numbers are int64 here."""


@dataclass(frozen=True)
class Document:
    """One document."""

    id: Id
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    """JSON: texts, numbers, booleans, null, lists and objects."""


def checked_id(key: Any, kind: str) -> Id:
    """Return an external id as SQLite and an index take it.

    Raises
    ------
    InvalidInput
        If it is of another kind, or stands for a missing result.
    """
    if kind == "str":
        if isinstance(key, str) and key and is_unicode(key):
            return str(key)
        raise InvalidInput(f"id of a document must be a string that is not empty, got {key!r}")
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool) and -(2**63) <= key < 2**63 and key != -1:
        return int(key)
    raise InvalidInput(f"id of a document must be an integer of 64 bits other than -1, got {key!r}")


def id_dtype(kind: str) -> Any:
    """Return the dtype of arrays of ids of a kind."""
    return np.str_ if kind == "str" else np.int64


def checked_text(document: Document) -> str:
    """Return the text of a document.

    Raises
    ------
    InvalidInput
        If it is no string, or half a surrogate pair is in it.
    """
    if isinstance(document.text, str) and is_unicode(document.text):
        return document.text
    raise InvalidInput(f"text of document {document.id!r} must be a string of Unicode, got {document.text!r:.80}")


def encode_metadata(document: Document) -> str:
    """Return the metadata of a document as JSON text.

    Raises
    ------
    InvalidInput
        If it is no object of JSON, or NaN or half a surrogate pair is in it.
    """
    where = f"metadata of document {document.id!r}"
    if not isinstance(document.metadata, Mapping):
        raise InvalidInput(f"{where} must be an object, got {type(document.metadata).__name__}")
    try:
        # Names as they are: SQLite compares those of a path with what stands in the text.
        text = json.dumps(dict(document.metadata), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{where} must be JSON: {error}") from None
    if not is_unicode(text):
        raise InvalidInput(f"{where} must be Unicode, got half a surrogate pair")
    return text


def is_unicode(text: str) -> bool:
    """Whether a string has an encoding: half a surrogate pair has none."""
    return text.encode("utf-8", "ignore").decode() == text
