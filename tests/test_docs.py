"""Every Python and shell block of the README and of docs/ runs as printed.

The blocks of one document run in order, each in a process of its own, in one temporary directory that holds
data/debian-sample.h5, corpus.npy and emb.npy (documents), queries.npy and q.npy (queries), and corpus.vqd, the index of
corpus.npy. `make` lines are only dry-run in the repository, since `make test` is what runs this test; the demo's script
runs in test_demo.py.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vqdistill
from vqdistill.index.opening import open_index

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = {"python": [sys.executable, "-"], "sh": ["bash", "-euo", "pipefail", "-s"]}
FRAMEWORKS = {"haystack", "langchain_core", "llama_index", "sklearn"}
"""Modules of which some may be missing; blocks that import them are skipped then."""
SHOWN = {"text", "json", "make"}
"""Languages of blocks that are output, or that have a test of their own."""


@pytest.fixture(scope="module", params=DOCUMENTS, ids=lambda path: path.name)
def workshop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    place = tmp_path_factory.mktemp("docs")
    (place / "data").symlink_to(ROOT / "data")
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2200, 32)).astype(np.float32) @ rng.standard_normal((32, 32)).astype(np.float32)
    for name in ("corpus", "emb"):
        np.save(place / f"{name}.npy", rows[:2000])
    for name in ("queries", "q"):
        np.save(place / f"{name}.npy", rows[2000:])
    text = request.param.read_text(encoding="utf-8")
    if "corpus.vqd" in text and request.param.name != "README.md":  # the README makes its own
        vqdistill.compile(place / "corpus.npy", place / "corpus.vqd", queries="none", distill=False)
    return text, place


def run(language: str, code: str, place: Path) -> str:
    """Run a block and return what it prints."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    makes = language == "sh" and all(line.startswith("make ") for line in code.splitlines())
    if makes:
        code = code.replace("make ", "make -n ")
    done = subprocess.run(
        RUN[language],
        input=code,
        cwd=ROOT if makes else place,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_block_runs_as_printed(workshop: tuple[str, Path]) -> None:
    text, place = workshop
    skipped: list[str] = []
    for language, code in BLOCK.findall(text):
        assert language in RUN or language in SHOWN, f"a block must be {', '.join([*RUN, *SHOWN])}, got {language!r}"
        imported = set(re.findall(r"^from (\w+)", code, re.MULTILINE)) & FRAMEWORKS
        missing = [name for name in sorted(imported) if importlib.util.find_spec(name) is None]
        skipped += missing
        if language in RUN and not missing:
            run(language, code, place)
    if skipped:
        extras = "langchain,llamaindex,haystack,sklearn"
        pytest.skip(f"all ran but what needs {', '.join(skipped)}: pip install 'vqdistill[{extras}]'")


@pytest.mark.parametrize("version", ["v1", "v2", "v3", "v4"])
def test_the_reader_of_the_format_reads_the_golden_indexes(version: str, tmp_path: Path) -> None:
    """A hundred lines of text are enough to read an index: the script finds what the engine finds."""
    index = ROOT / "tests" / "golden" / version / "index"
    (tmp_path / "corpus.vqd").symlink_to(index)
    ((_, code),) = BLOCK.findall((ROOT / "docs" / "FORMAT.md").read_text(encoding="utf-8"))
    words = run("python", code, tmp_path).split()
    with open_index(index) as reader:
        query, nlist = reader.model.router[:1], reader.manifest.nlist
        scores, positions, _ = reader.engine().search(query, k=1, nprobe=nlist, refine=0, threads=1)
        assert words[::2] == ["row", "score"] and int(words[1]) == reader.rows_of(positions)[0, 0]
    assert float(words[3]) == pytest.approx(float(scores[0, 0]), rel=1e-5)


def test_no_block_is_missed() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert 2 * len(BLOCK.findall(text)) == text.count("```"), document.name


def test_the_uses_in_the_readme_are_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    assert sum(language == "python" for language, _ in blocks) >= 2
    assert all(len(code.splitlines()) <= 10 for _, code in blocks)


def test_the_examples_of_the_adapters_are_short() -> None:
    text = (ROOT / "docs" / "INTEGRATIONS.md").read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    assert set(re.findall(r"^from (\w+)", text, re.MULTILINE)) >= FRAMEWORKS
    assert len(blocks) >= 7 and all(len(code.splitlines()) <= 25 for _, code in blocks)


def test_relative_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
