"""BEIR-style search: runs that ir-measures takes, the same as of the index itself, from a corpus or from an index."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pytest
from ir_measures import RR, R

import vqdistill
from vqdistill.errors import InvalidInput
from vqdistill.integrations.beir import BeirSearch, run

D = 24
TOPICS = 40


def vector(text: str, noise: float) -> Any:
    """A vector that texts of one topic share, but for some noise."""

    def normal(part: str) -> Any:
        seed = int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "little")
        return np.random.default_rng(seed).standard_normal(D)

    return normal(text[:3]) + noise * normal(text)


class Model:
    """An encoder as BEIR has it."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode_queries(self, queries: list[str], batch_size: int, **_: Any) -> Any:
        return np.stack([vector(text, 0.1) for text in queries])

    def encode_corpus(self, corpus: list[dict[str, str]], batch_size: int, **_: Any) -> Any:
        self.batches.append(len(corpus))
        return np.stack([vector(one["text"], 0.5) for one in corpus])


CORPUS = {f"d{i}": {"title": "", "text": f"{i % TOPICS:03d} document {i}"} for i in range(600)}
ASKED = {f"q{i}": f"{i:03d} query" for i in range(TOPICS)} | {"d7": CORPUS["d7"]["text"]}
QRELS = {f"q{i}": {f"d{j}": 1 for j in range(i, 600, TOPICS)} for i in range(TOPICS)}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("beir") / "index"
    rows = Model().encode_corpus(list(CORPUS.values()), 1)
    vqdistill.compile(rows, path, ids=list(CORPUS), queries="none", distill=False)
    return vqdistill.open(path)


def encode(texts: list[str]) -> Any:
    return Model().encode_queries(texts, 1)


def test_a_run_has_what_the_index_finds(index: Any) -> None:
    found = run(index, encode, ASKED, 20, batch=7)
    hits = index.search(encode(list(ASKED.values())), 20)
    assert list(found) == list(ASKED)
    for name, ids, scores in zip(ASKED, hits.ids.tolist(), hits.scores.tolist(), strict=True):
        assert found[name] == dict(zip(ids, scores, strict=True)) and list(found[name]) == ids
    measured = ir_measures.calc_aggregate([RR @ 10, R @ 20], QRELS, found)
    assert measured[RR @ 10] > 0.95 and measured[R @ 20] > 0.6


def test_a_query_does_not_find_itself(index: Any) -> None:
    assert "d7" in run(index, encode, ASKED, 5)["d7"]
    without = run(index, encode, ASKED, 5, skip_self=True)["d7"]
    assert "d7" not in without and len(without) == 5


def test_a_run_ends_where_the_index_does(index: Any) -> None:
    found = run(index, encode, {"q": "001 query"}, 10_000, nprobe=index.reader.manifest.nlist, refine=600)
    assert set(found["q"]) == set(CORPUS)


@pytest.mark.parametrize("score", ["cos_sim", "dot"])
def test_a_corpus_is_compiled_and_searched(tmp_path: Path, score: str) -> None:
    model = Model()
    search = BeirSearch(model, 128, path=tmp_path / "index", distill=False, search={"coverage": None})
    found = search.search(CORPUS, ASKED, 10, score)
    assert found is search.results and max(model.batches) == 128 and sum(model.batches) == len(CORPUS)
    assert all(len(best) == 10 for best in found.values()) and "d7" not in found["d7"]
    assert ir_measures.calc_aggregate([RR @ 10], QRELS, found)[RR @ 10] > 0.95
    opened = vqdistill.open(tmp_path / "index")
    assert opened.reader.manifest.metric.value == {"cos_sim": "cosine", "dot": "ip"}[score]
    assert [name.name for name in tmp_path.iterdir()] == ["index"]


def test_what_cannot_be_used_is_said(index: Any) -> None:
    with pytest.raises(InvalidInput, match="^score_function must be one of cos_sim, dot, got 'l2'$"):
        BeirSearch(Model()).search(CORPUS, ASKED, 10, "l2")
    with pytest.raises(InvalidInput, match="^corpus must have documents, got none$"):
        BeirSearch(Model()).search({}, ASKED, 10)
    with pytest.raises(InvalidInput, match="^queries must be encoded as one vector a text, got 1 of 2 texts$"):
        run(index, lambda texts: np.ones((1, D)), {"a": "", "b": ""})
    with pytest.raises(InvalidInput, match="^batch must be a positive integer, got 0$"):
        run(index, encode, ASKED, batch=0)
    with pytest.raises(InvalidInput, match="^k must be an integer in 1..600, the rows of the index, got 0$"):
        run(index, encode, ASKED, 0)
