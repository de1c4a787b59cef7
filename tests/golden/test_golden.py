"""Indexes of every released format version open and answer as they did; today's writer still makes the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqdistill.index.reader import IndexReader
from vqdistill.index.spec import OLDEST_VERSION, VERSION
from vqdistill.index.verify import verify
from vqdistill.searcher import Searcher

HERE = Path(__file__).parent
VERSIONS = sorted(path.name for path in HERE.glob("v*") if path.is_dir())


def test_there_are_golden_indexes() -> None:
    assert [f"v{version}" for version in range(OLDEST_VERSION, VERSION + 1)] == VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_a_golden_index_answers_as_it_did(version: str) -> None:
    wanted = json.loads((HERE / version / "answers.json").read_text(encoding="utf-8"))
    path = HERE / version / "index"
    assert verify(path) == []
    with IndexReader.open(path) as reader:
        queries = np.array(wanted["queries"], dtype=np.float32)
        n, nlist = reader.manifest.n, reader.manifest.nlist
        scores, positions, _ = reader.engine().search(queries, k=5, nprobe=nlist, refine=n, threads=1)
        assert reader.rows_of(positions).tolist() == wanted["rows"]
        assert reader.ids_of(positions).tolist() == wanted["ids"]
        assert np.allclose(scores, wanted["scores"], rtol=0, atol=1e-5)
        if "by_code" in wanted:
            scores, positions, _ = reader.engine().search(queries, k=5, nprobe=nlist, refine=0, threads=1)
            assert reader.rows_of(positions).tolist() == wanted["by_code"]["rows"]
            assert np.allclose(scores, wanted["by_code"]["scores"], rtol=0, atol=1e-5)
        assert f"v{reader.manifest.version}" == version
        stored = {name: value for name, value in reader.manifest.search.to_json().items() if value not in (None, [])}
        search = wanted.get("search", {"nprobe": 2, "refine": 10})
        search.pop("deviations", None)  # of versions 2 and 3; read, but used no more
        assert stored == search
        assert reader.manifest.plan == {"name": "golden"}
        certificate = reader.manifest.certificate
        assert (None if certificate is None else certificate.to_json()) == wanted.get("certificate")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_golden_index_is_searched_with_its_own_defaults(version: str) -> None:
    wanted = json.loads((HERE / version / "answers.json").read_text(encoding="utf-8"))
    with IndexReader.open(HERE / version / "index") as reader:
        hits = Searcher(reader).search(wanted["queries"], k=5)
    visited = hits.query_stats["lists_probed"]
    assert (visited == 2).all() if version == "v1" else 1 <= visited.min() < visited.max() <= 4
    shared = 0
    for i, scores in enumerate(wanted["scores"]):
        exact = dict(zip(wanted["rows"][i], scores, strict=True))
        found = {row: score for row, score in zip(hits.rows[i].tolist(), hits.scores[i], strict=True) if row in exact}
        assert all(score == pytest.approx(exact[row], abs=1e-5) for row, score in found.items())
        shared += len(found)
    assert shared > 0


def test_the_script_makes_the_same_bytes(tmp_path: Path) -> None:
    """A change of the written bytes is a change of the format: on purpose, or a mistake."""
    subprocess.run([sys.executable, str(HERE / "make_golden.py"), str(tmp_path)], check=True)
    made = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert f"v{VERSION}/index/CURRENT" in made and "manifest-smallest.json" in made
    answers = f"v{VERSION}/answers.json"
    for name, data in made.items():
        if name != answers:
            assert (HERE / name).read_bytes() == data, name
    # The last digits of scores, and of queries that were multiplied for them, are those of the machine.
    stored, found = parted((HERE / answers).read_bytes()), parted(made[answers])
    assert stored[0] == found[0]
    assert np.allclose(stored[1], found[1], rtol=0, atol=1e-5)


def parted(text: bytes) -> tuple[Any, list[float]]:
    """Return the value of a JSON text without its fractions, and these."""
    fractions: list[float] = []
    return json.loads(text, parse_float=lambda number: fractions.append(float(number))), fractions
