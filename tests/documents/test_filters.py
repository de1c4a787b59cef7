"""Filters: SQL says of every document what a plain reading of the filter says, and bad ones are refused."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqdistill.documents.document import Document, encode_metadata
from vqdistill.documents.filters import (
    COMPARISONS,
    All,
    AnyOf,
    Compare,
    Contains,
    Empty,
    Exists,
    Filter,
    In,
    Not,
    as_filter,
)
from vqdistill.documents.sql import to_sql
from vqdistill.documents.store import DocumentStore
from vqdistill.errors import InvalidInput

FIELDS = ["a", "b.c", "d e", "ü", "a'); DROP TABLE documents; --"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**53 + 1, -(2**63), 2**63 - 1]),
    st.floats(-3, 3).map(lambda x: round(x, 1)),
    st.sampled_from(["", "1", "true", "null", "x", "xy", "ü", "o'; --", "\n", "%", "X"]),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.just({"z": 1}))
NOTES = st.fixed_dictionaries(
    {},
    optional={"a": VALUES, "b": st.one_of(st.fixed_dictionaries({"c": VALUES}), SCALARS), "d e": VALUES, "ü": VALUES},
)
ORDERED = SCALARS.filter(lambda value: value is not None and not isinstance(value, bool))
LEAVES = st.one_of(
    st.builds(Compare, st.sampled_from(FIELDS), st.sampled_from(["==", "!="]), SCALARS),
    st.builds(Compare, st.sampled_from(FIELDS), st.sampled_from(COMPARISONS), ORDERED),
    st.builds(In, st.sampled_from(FIELDS), st.lists(SCALARS, max_size=4).map(tuple)),
    st.builds(Contains, st.sampled_from(FIELDS), SCALARS),
    st.builds(Exists, st.sampled_from(FIELDS)),
    st.builds(Empty, st.sampled_from(FIELDS)),
)
FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: All(tuple(parts))),
        st.lists(inner, max_size=3).map(lambda parts: AnyOf(tuple(parts))),
        inner.map(Not),
    ),
    max_leaves=6,
)


def lookup(notes: Any, field: str) -> Any:
    for name in field.split("."):
        notes = notes.get(name) if isinstance(notes, dict) else None
    return notes


def kind(value: Any) -> str:
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__


def equal(one: Any, other: Any) -> bool:
    return kind(one) == kind(other) and one == other


def passes(where: Filter, notes: dict[str, Any]) -> bool:
    """What a filter means, in plain Python."""
    match where:
        case All(parts):
            return all(passes(part, notes) for part in parts)
        case AnyOf(parts):
            return any(passes(part, notes) for part in parts)
        case Not(part):
            return not passes(part, notes)
        case Exists(field):
            return lookup(notes, str(field)) is not None
        case Empty(field):
            return lookup(notes, str(field)) in (None, "", [])
        case In(field, values):
            return any(equal(lookup(notes, str(field)), value) for value in values)
        case Contains(field, value):
            held = lookup(notes, str(field))
            if isinstance(held, str):
                return isinstance(value, str) and value in held
            return isinstance(held, list) and any(equal(one, value) for one in held)
        case Compare(field, "==", value):
            return equal(lookup(notes, str(field)), value)
        case Compare(field, "!=", value):
            return not equal(lookup(notes, str(field)), value)
        case Compare(field, op, value):
            held = lookup(notes, str(field))
            if kind(held) != kind(value):
                return False
            less, same = held < value, held == value
            return {"<": less, "<=": less or same, ">": not less and not same, ">=": not less}[op]
    raise AssertionError(where)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DocumentStore]:
    with DocumentStore(tmp_path_factory.mktemp("filters") / "documents.sqlite3") as made:
        yield made


@pytest.fixture(scope="module")
def table() -> Iterator[Any]:
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE documents (id, metadata)")
    yield db
    db.close()


@given(notes=st.lists(NOTES, min_size=1, max_size=6), where=FILTERS)
def test_sql_says_what_the_filter_means(table: Any, notes: list[dict[str, Any]], where: Filter) -> None:
    table.execute("DELETE FROM documents")
    rows = ((i, encode_metadata(Document("", "", note))) for i, note in enumerate(notes))
    table.executemany("INSERT INTO documents VALUES (?, ?)", rows)

    def found(condition: Filter) -> list[int]:
        sql, parameters = to_sql(condition)
        return [row[0] for row in table.execute(f"SELECT id FROM documents WHERE {sql} ORDER BY id", parameters)]

    wanted = [i for i, note in enumerate(notes) if passes(where, note)]
    assert found(where) == wanted
    assert sorted(found(Not(where)) + wanted) == list(range(len(notes)))


def test_a_store_finds_what_passes(store: DocumentStore) -> None:
    store.put(Document(str(i), "", {"i": i}) for i in range(5))
    where = as_filter({"i": {"$gte": 3}})
    assert store.ids(where).tolist() == [document.id for document in store.select(where)] == ["3", "4"]
    assert (store.count(where), store.count(), store.count({"i": None})) == (2, 5, 0)
    store.delete(store.ids().tolist())


def test_json_reads_as_the_values_it_stands_for() -> None:
    year = Compare("year", ">=", 2020)
    assert as_filter({"year": {"$gte": 2020}}) == year
    assert as_filter({"year": {"$gte": 2020, "$lt": 2030}}) == All((year, Compare("year", "<", 2030)))
    assert as_filter({"lang": "en", "year": {"$gte": 2020}}) == All((Compare("lang", "==", "en"), year))
    assert as_filter({"$or": [{"a": None}, {"$not": {"b": {"$in": [1]}}}]}) == AnyOf(
        (Compare("a", "==", None), Not(In("b", (1,))))
    )
    assert as_filter({"a": {"$nin": ["x"]}}) == Not(In("a", ("x",)))
    assert as_filter({"a": {"$exists": False}}) == Not(Exists("a"))
    assert as_filter({"a": {"$contains": "x"}}) == Contains("a", "x")
    assert as_filter({"a": {"$empty": True}}) == Empty("a")
    assert as_filter({"a": {"$ne": 1}}) == Compare("a", "!=", 1)
    assert as_filter({}) == All(()) and as_filter(year) is year
    assert (year & Exists("a")) | ~year == AnyOf((All((year, Exists("a"))), Not(year)))


def test_names_with_dots_are_reached_by_a_tuple(tmp_path: Path) -> None:
    with DocumentStore(tmp_path / "d") as store:
        store.put([Document("1", "", {"a.b": 1}), Document("2", "", {"a": {"b": 1}})])
        assert store.ids(Compare(("a.b",), "==", 1)).tolist() == ["1"]
        assert store.ids(Compare("a.b", "==", 1)).tolist() == ["2"]


def test_no_text_of_the_caller_becomes_sql() -> None:
    hostile = "x') OR 1=1 --"
    leaves = [
        Compare(hostile, "!=", hostile),
        In(hostile, (hostile, 1)),
        Contains(hostile, hostile),
        Exists(hostile),
        Empty(hostile),
    ]
    sql, parameters = to_sql(Not(All(tuple(leaves))))
    assert "OR 1=1" not in sql and sql.count("?") == len(parameters)


def test_any_number_of_values_are_looked_for(store: DocumentStore) -> None:
    store.delete(store.ids().tolist())
    store.put(Document(str(i), "", {"i": i}) for i in range(10))
    assert store.count(In("i", tuple(range(5, 100_000)))) == 5


def deep(depth: int) -> Any:
    where: Any = {"a": 1}
    for _ in range(depth):
        where = {"$not": where}
    return where


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("a", 'a filter must be an object such as {"year": {"$gte": 2020}}, got \'a\''),
        ({"$and": {"a": 1}}, "$and of a filter must have a list of filters, got {'a': 1}"),
        ({"$nor": []}, "a filter must have fields, $and, $or or $not, got $nor"),
        ({"a": [1]}, "filter on a must be by a text, a number of 64 bits, true, false or null, got [1]"),
        ({"a": 2**63}, f"filter on a must be by a text, a number of 64 bits, true, false or null, got {2**63}"),
        ({"a": float("nan")}, "filter on a must be by a text, a number of 64 bits, true, false or null, got nan"),
        ({"a": "\ud800"}, "filter on a must be by a text, a number of 64 bits, true, false or null, got '\\ud800'"),
        ({"a": {"$gt": None}}, "filter on a must order numbers or texts, got > None"),
        ({"a": {"$lt": True}}, "filter on a must order numbers or texts, got < True"),
        ({"a": {"$in": "x"}}, "filter on a must have a list of values, got 'x'"),
        ({"a": {"$exists": 1}}, "$exists of a must be true or false, got 1"),
        ({'a"b': 1}, "field of a filter must have no quote, backslash or control character, got 'a\"b'"),
        ({"a..b": 1}, "field of a filter must be a name, or names with dots between, got 'a..b'"),
        ({1: 1}, "field of a filter must be a name, or names with dots between, got 1"),
        (deep(100), "a filter must be nested 32 deep at most"),
        ({"$or": [{"a": 1}] * 300}, "a filter must have 256 parts at most"),
    ],
)
def test_bad_filters_are_refused_in_a_sentence(store: DocumentStore, where: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        store.ids(where)
    assert str(caught.value) == message


def test_what_is_just_within_the_limits_runs(store: DocumentStore) -> None:
    store.ids(deep(32))
    store.ids({"$or": [{"a": 1}] * 255})
    with pytest.raises(InvalidInput, match="^op of a filter must be one of ==, !=, <, <=, >, >=, got '~'$"):
        Compare("a", "~", 1)
