"""SearchPolicy: stored and read back, refused where it makes no sense, and monotone between its rungs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.index.support import CALIBRATED
from vqdistill.errors import CorruptIndex
from vqdistill.index.fields import Fields, parse_json
from vqdistill.index.policy import SearchPolicy

NAME = "manifest-1.json"
PLAIN = SearchPolicy(nprobe=2, refine=0)
shares = st.floats(0.01, 1.0, exclude_max=True)


@st.composite
def rungs(draw: st.DrawFn) -> tuple[tuple[float, float], ...]:
    coverages = sorted(draw(st.sets(shares, min_size=1, max_size=6)))
    lifts = sorted(draw(st.lists(st.floats(1e-9, 1e9), min_size=len(coverages), max_size=len(coverages))), reverse=True)
    return tuple(zip(coverages, lifts, strict=True))


@st.composite
def policies(draw: st.DrawFn) -> SearchPolicy:
    ladder = draw(st.just(()) | rungs())
    positive = st.floats(1e-6, 1e6)
    confidence = draw(st.none() | shares)
    return SearchPolicy(
        nprobe=draw(st.integers(1, 8)),
        refine=draw(st.integers(0, 2**40)),
        coverage=draw(st.floats(0.001, ladder[-1][0])) if ladder else None,
        rungs=ladder,
        temperature=draw(positive) if ladder else None,
        confidence=confidence,
        error=None if confidence is None else draw(positive),
    )


def parse(search: Any, version: int = 2, nlist: int = 8, has_dense: bool = True) -> SearchPolicy:
    doc = parse_json(json.dumps({"search": search}).encode(), NAME)
    return SearchPolicy.parse(Fields(doc, NAME).object("search"), version=version, nlist=nlist, has_dense=has_dense)


@given(policies())
def test_to_json_and_back(policy: SearchPolicy) -> None:
    assert parse(policy.to_json()) == policy


def test_older_indexes_may_say_how_scans_left_codes_early() -> None:
    assert parse(CALIBRATED.to_json() | {"deviations": 4.0}) == CALIBRATED
    assert CALIBRATED.to_json()["deviations"] is None


def test_version_1_knows_two_numbers() -> None:
    assert parse({"nprobe": 3, "refine": 50}, version=1) == SearchPolicy(nprobe=3, refine=50)
    with pytest.raises(CorruptIndex, match="search lacks the keys .. and has the unknown keys .*'confidence'"):
        parse(PLAIN.to_json(), version=1)
    with pytest.raises(CorruptIndex, match="search lacks the keys .*'confidence'"):
        parse({"nprobe": 3, "refine": 50})


@given(rungs(), st.data())
def test_more_coverage_never_takes_a_higher_lift(ladder: tuple[tuple[float, float], ...], data: st.DataObject) -> None:
    policy = replace(CALIBRATED, rungs=ladder, coverage=ladder[-1][0])
    low, high = sorted(data.draw(st.floats(0.001, ladder[-1][0])) for _ in range(2))
    assert policy.lift(low) >= policy.lift(high) * (1 - 1e-12)
    assert ladder[-1][1] * (1 - 1e-12) <= policy.lift(high) <= policy.lift(low) <= ladder[0][1] * (1 + 1e-12)
    for coverage, lift in ladder:
        assert policy.lift(coverage) == pytest.approx(lift, rel=1e-12)


def test_lift_between_rungs_is_geometric() -> None:
    policy = replace(CALIBRATED, rungs=((0.5, 16.0), (0.75, 1.0), (1.0, 0.25)))
    assert policy.lift(0.1) == policy.lift(0.5) == 16.0
    assert policy.lift(0.625) == pytest.approx(4.0)
    assert policy.lift(0.875) == pytest.approx(0.5)
    assert policy.lift(1.0) == 0.25


RUNGS = "search.rungs must be a list of pairs of a rising coverage in (0, 1] and a falling lift above 0, got "
COVERAGE = "search.coverage must be at most the last rung's, and null without rungs, got "
TEMPERATURE = "search.temperature must be null if and only if there are no rungs, got "
CONFIDENCE = "search.confidence must be null if error is, and before version 4 only then, got "


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nprobe": 0}, "search.nprobe must be an integer in 1..8, got 0"),
        ({"nprobe": 9}, "search.nprobe must be an integer in 1..8, got 9"),
        ({"refine": -1}, "search.refine must be an integer in 0..1099511627776, got -1"),
        ({"refine": 2.0}, "search.refine must be an integer in 0..1099511627776, got 2.0"),
        ({"coverage": 0}, "search.coverage must be null or a number in (0, 1], got 0"),
        ({"coverage": True}, "search.coverage must be null or a number in (0, 1], got True"),
        ({"coverage": 0.995}, COVERAGE + "0.995"),
        ({"coverage": None}, COVERAGE + "None"),
        ({"rungs": []}, COVERAGE + "0.95"),
        ({"rungs": None}, RUNGS + "None"),
        ({"rungs": [[0.9]]}, RUNGS + "[[0.9]]"),
        ({"rungs": [0.9, 1.0]}, RUNGS + "[0.9, 1.0]"),
        ({"rungs": [["a", 1.0]]}, RUNGS + "[['a', 1.0]]"),
        ({"rungs": [[0.99, True]]}, RUNGS + "[[0.99, True]]"),
        ({"rungs": [[True, 1.0]]}, RUNGS + "[[True, 1.0]]"),
        ({"rungs": [[0, 1.0]]}, RUNGS + "[[0, 1.0]]"),
        ({"rungs": [[1.01, 1.0]]}, RUNGS + "[[1.01, 1.0]]"),
        ({"rungs": [[0.99, 0]]}, RUNGS + "[[0.99, 0]]"),
        ({"rungs": [[0.9, 1], [0.9, 1]]}, RUNGS + "[[0.9, 1], [0.9, 1]]"),
        ({"rungs": [[0.9, 1], [0.95, 2]]}, RUNGS + "[[0.9, 1], [0.95, 2]]"),
        ({"rungs": [[0.9, 1, 2]]}, RUNGS + "[[0.9, 1, 2]]"),
        ({"temperature": None}, TEMPERATURE + "None"),
        ({"temperature": 0}, "search.temperature must be null or a number in (1e-30, 1e+30], got 0"),
        ({"coverage": None, "rungs": []}, TEMPERATURE + "0.125"),
        ({"confidence": None}, CONFIDENCE + "None"),
        ({"error": None}, CONFIDENCE + "0.99"),
        ({"error": -1.0}, "search.error must be null or a number in (1e-30, 1e+30], got -1.0"),
        ({"error": 1e-46}, "search.error must be null or a number in (1e-30, 1e+30], got 1e-46"),
        ({"confidence": 1.5}, "search.confidence must be null or a number in (0, 1], got 1.5"),
        ({"deviations": 0}, "search.deviations must be null or a number in (0, 1e+06], got 0"),
        ({"deviations": "3"}, "search.deviations must be null or a number in (0, 1e+06], got '3'"),
    ],
)
def test_each_bad_field_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptIndex) as caught:
        parse(CALIBRATED.to_json() | changes)
    assert str(caught.value) == f"{NAME}: {message}"


def test_from_version_4_on_fixed_numbers_may_be_the_default_of_a_calibrated_index() -> None:
    policy = replace(CALIBRATED, coverage=None, confidence=None)
    assert parse(policy.to_json(), version=4) == policy
    for version, changes in ((3, {"coverage": None}), (3, {"confidence": None}), (4, {"error": None})):
        with pytest.raises(CorruptIndex, match="must be"):
            parse(CALIBRATED.to_json() | changes, version=version)


def test_refine_needs_dense_rows() -> None:
    with pytest.raises(CorruptIndex, match=r"search.refine must be 0 where no dense rows are stored, got 10"):
        parse(CALIBRATED.to_json(), has_dense=False)
    assert parse(PLAIN.to_json(), has_dense=False) == PLAIN
