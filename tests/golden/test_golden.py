"""Indexes of every released format version open and answer as they did; today's writer still makes the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vqdistill.index.reader import IndexReader, verify

HERE = Path(__file__).parent
VERSIONS = sorted(path.name for path in HERE.glob("v*") if path.is_dir())


def test_there_are_golden_indexes() -> None:
    assert "v1" in VERSIONS


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
        assert dict(reader.manifest.search) == {"nprobe": 2, "refine": 10}
        assert reader.manifest.plan == {"name": "golden"}


def test_the_script_makes_the_same_bytes(tmp_path: Path) -> None:
    """A change of the written bytes is a change of the format: on purpose, or a mistake."""
    subprocess.run([sys.executable, str(HERE / "make_golden.py"), str(tmp_path)], check=True)
    made = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert "v1/index/CURRENT" in made and "manifest-smallest.json" in made
    for name, data in made.items():
        assert (HERE / name).read_bytes() == data, name
