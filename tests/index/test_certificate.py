"""Certificates: JSON and back, every bad field, and which rung a recall takes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.index.support import CALIBRATED, smallest_manifest
from vqdistill.errors import CorruptIndex, InvalidInput
from vqdistill.index.certificate import Certificate, Rung, policy_of
from vqdistill.index.fields import Fields, parse_json
from vqdistill.index.manifest import Manifest
from vqdistill.index.policy import SearchPolicy

NAME = "manifest-1.json"
WORK: dict[str, float] = {"lists": 3.0, "codes": 50.5, "rows": 12.0, "pages": 8.5}
LOW = Rung(
    target=0.8, nprobe=None, coverage=0.9, refine=20, confidence=0.9, recall=0.85, low=0.81, high=0.9, cost=5.0, **WORK
)
MIDDLE = Rung(
    target=0.9, nprobe=4, coverage=None, refine=40, confidence=None, recall=0.95, low=0.91, high=0.97, cost=9.0, **WORK
)
HIGH = Rung(
    target=0.99, nprobe=8, coverage=None, refine=0, confidence=None, recall=0.96, low=0.94, high=0.98, cost=7.0, **WORK
)
GOOD = Certificate(
    k=10,
    queries=100,
    tuned_on=50,
    level=0.95,
    real_queries=True,
    truth="index",
    truth_recall=0.9,
    rungs=(LOW, MIDDLE, HIGH),
)


def parse(doc: Any, n: int = 70, policy: SearchPolicy = CALIBRATED) -> Certificate:
    fields = Fields(parse_json(json.dumps({"certificate": doc}).encode(), NAME), NAME)
    return Certificate.parse(fields.object("certificate"), n=n, nlist=8, policy=policy)


def test_to_json_and_back() -> None:
    assert parse(GOOD.to_json()) == GOOD
    exact = replace(GOOD, truth="exact", truth_recall=None)
    assert parse(exact.to_json()) == exact


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 71}, "k must be an integer in 1..70, got 71"),
        ({"queries": 0}, "queries must be an integer"),
        ({"tuned_on": -1}, "tuned_on must be an integer"),
        ({"level": 1.5}, "level must be a number in 0..1, got 1.5"),
        ({"level": True}, "level must be a number in 0..1, got True"),
        ({"real_queries": 1}, "real_queries must be true or false, got 1"),
        ({"truth": "guess"}, "truth must be one of exact, index"),
        ({"truth_recall": None}, "truth_recall must be null if and only if the truth is exact"),
        ({"truth": "exact"}, "truth_recall must be null if and only if the truth is exact"),
        ({"rungs": []}, "rungs must be a list of 1..100 objects"),
        ({"rungs": {}}, "rungs must be a list of 1..100 objects"),
        ({"rungs": [1]}, r"certificate.rungs\[0\] must be a JSON object, got 1"),
        ({"rungs": [MIDDLE, LOW]}, "rungs must be of rising targets"),
        ({"surprise": 1}, "unknown keys"),
    ],
)
def test_each_bad_field_is_refused(changes: dict[str, Any], message: str) -> None:
    doc = GOOD.to_json() | changes
    doc["rungs"] = [vars(rung) if isinstance(rung, Rung) else rung for rung in doc["rungs"]]
    with pytest.raises(CorruptIndex, match=message):
        parse(doc)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coverage": 0.999}, "coverage must be null or a number in"),
        ({"coverage": None}, "nprobe must be null if and only if coverage is a number"),
        ({"nprobe": 4}, "nprobe must be null if and only if coverage is a number"),
        ({"coverage": None, "nprobe": 9}, "nprobe must be an integer in 1..8, got 9"),
        ({"refine": 9}, "refine must be 0 or at least k = 10"),
        ({"refine": 0}, "with a confidence only where reading can stop early"),
        ({"refine": 2.0}, "refine must be an integer"),
        ({"confidence": 2}, "confidence must be null or a number"),
        ({"recall": 0.7}, "recall must be between low and high"),
        ({"high": 1.1}, "high must be a number in 0..1"),
        ({"cost": -1}, "cost must be a number"),
        ({"pages": None}, "pages must be a number"),
        ({"more": 1}, r"certificate.rungs\[0\] lacks the keys .* unknown keys"),
    ],
)
def test_each_bad_field_of_a_rung_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptIndex, match=message):
        parse(GOOD.to_json() | {"rungs": [vars(LOW) | changes]})


def test_a_rung_is_an_option_of_its_index() -> None:
    with pytest.raises(CorruptIndex, match="coverage must be null"):
        parse(GOOD.to_json(), policy=SearchPolicy(nprobe=1, refine=10))
    with pytest.raises(CorruptIndex, match="refine must be an integer in 0..0, got 40"):
        parse(GOOD.to_json() | {"rungs": [vars(MIDDLE)]}, policy=SearchPolicy(nprobe=1, refine=0))


def test_a_manifest_holds_it() -> None:
    rung = replace(HIGH, nprobe=1)
    certificate = replace(GOOD, k=1, truth="exact", truth_recall=None, rungs=(rung,))
    manifest = replace(smallest_manifest(), certificate=certificate)
    assert Manifest.parse(manifest.to_bytes(), NAME) == manifest


def test_the_cheapest_rung_whose_lower_bound_reaches_a_recall() -> None:
    assert GOOD.choose(0.8, 10) == LOW
    assert GOOD.choose(0.81, 1) == LOW
    assert GOOD.choose(0.82, 10) == HIGH  # cheaper than the middle one
    assert GOOD.choose(0.94, 10) == HIGH
    with pytest.raises(InvalidInput, match=r"at most 0.9400, the lower bound .*\(recall@10 0.9600\), got 0.95"):
        GOOD.choose(0.95, 10)
    with pytest.raises(InvalidInput, match="k must be at most 10 with recall"):
        GOOD.choose(0.8, 11)


def test_a_rung_as_the_default_of_an_index() -> None:
    policy = policy_of(LOW, CALIBRATED)
    assert (policy.coverage, policy.nprobe, policy.refine, policy.confidence) == (0.9, 3, 20, 0.9)
    policy = policy_of(MIDDLE, CALIBRATED)
    assert (policy.coverage, policy.nprobe, policy.refine, policy.confidence) == (None, 4, 40, None)
    assert policy.rungs == CALIBRATED.rungs
