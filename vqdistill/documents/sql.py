"""Filters as conditions of SQL, in which names and values of the caller are parameters only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vqdistill.documents.filters import (
    MAX_DEPTH,
    MAX_PARTS,
    All,
    AnyOf,
    Contains,
    Empty,
    Exists,
    Filter,
    In,
    Not,
    Scalar,
    names_of,
)
from vqdistill.errors import InvalidInput

_SQL = {"==": "=", "!=": "=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}


def to_sql(where: Filter) -> tuple[str, list[Any]]:
    """Compile a filter to a condition on the column `metadata`, true or false of every row, and its parameters.

    Field names and values are parameters only: no text of the caller becomes SQL.

    Raises
    ------
    InvalidInput
        If it has more than MAX_PARTS parts, or is nested deeper than MAX_DEPTH.
    """
    compiler = _Compiler()
    return compiler.condition(where, 0), compiler.parameters


class _Compiler:
    """Conditions, and their parameters in the order in which they are asked for."""

    def __init__(self) -> None:
        self.parameters: list[Any] = []
        self._parts = 0

    def condition(self, where: Filter, depth: int) -> str:
        if depth > MAX_DEPTH + 1:
            raise InvalidInput(f"a filter must be nested {MAX_DEPTH} deep at most")
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidInput(f"a filter must have {MAX_PARTS} parts at most")
        if isinstance(where, Not):
            return f"NOT ({self.condition(where.part, depth + 1)})"
        if isinstance(where, (All, AnyOf)):
            parts = [f"({self.condition(part, depth + 1)})" for part in where.parts]
            joined, empty = (" AND ", "1") if isinstance(where, All) else (" OR ", "0")
            return joined.join(parts) or empty
        path = _path(where.field)
        if isinstance(where, Exists):
            return f"NOT {self._type(path, None)}"
        if isinstance(where, Empty):
            none, text = self._type(path, None), self._type(path, "")
            blank = f"{text} AND json_extract(metadata, {self._bind(path)}) = ''"
            listed = f"coalesce(json_array_length(metadata, {self._bind(path)}), 0) = 0"
            array = f"coalesce(json_type(metadata, {self._bind(path)}), 'null') = 'array'"
            return f"({none} OR ({blank}) OR ({listed} AND {array}))"
        if isinstance(where, Contains):
            return self._contains(path, where.value)
        if isinstance(where, In):
            return self._in(path, where.values)
        holds = self._type(path, where.value)
        if _has_content(where.value):
            holds = (
                f"({holds} AND json_extract(metadata, {self._bind(path)}) {_SQL[where.op]} {self._bind(where.value)})"
            )
        return f"NOT {holds}" if where.op == "!=" else holds

    def _bind(self, value: Any) -> str:
        self.parameters.append(value)
        return "?"

    def _type(self, path: str, value: Scalar) -> str:
        """Whether a field has the type of a value; of None and booleans, whether it equals it."""
        return f"coalesce(json_type(metadata, {self._bind(path)}), 'null') IN ({_json_types(value)})"

    def _in(self, path: str, values: Sequence[Scalar]) -> str:
        """One condition for each type among the values, so that any number of them takes nine parameters at most."""
        groups: dict[str, list[Scalar]] = {}
        for value in values:
            groups.setdefault(_json_types(value), []).append(value)
        conditions = []
        for group in groups.values():
            condition = self._type(path, group[0])
            if _has_content(group[0]):
                found, wanted = self._bind(path), self._bind(json.dumps(group, ensure_ascii=False))
                condition += f" AND json_extract(metadata, {found}) IN (SELECT value FROM json_each({wanted}))"
            conditions.append(f"({condition})")
        return f"({' OR '.join(conditions)})" if conditions else "0"

    def _contains(self, path: str, value: Scalar) -> str:
        listed = f"coalesce(json_type(metadata, {self._bind(path)}), 'null') = 'array'"
        same = f"json_each(metadata, {self._bind(path)}) WHERE json_each.type IN ({_json_types(value)})"
        if _has_content(value):
            same += f" AND json_each.value = {self._bind(value)}"
        condition = f"({listed} AND EXISTS (SELECT 1 FROM {same}))"
        if not isinstance(value, str):
            return condition
        text = self._type(path, value)
        within = f"instr(json_extract(metadata, {self._bind(path)}), {self._bind(value)}) > 0"
        return f"({condition} OR ({text} AND {within}))"


def _json_types(value: Scalar) -> str:
    """What SQLite's json_type calls values like this one, in quotes."""
    if value is None:
        return "'null'"
    if isinstance(value, bool):
        return "'true'" if value else "'false'"
    return "'text'" if isinstance(value, str) else "'integer', 'real'"


def _has_content(value: Scalar) -> bool:
    """Whether there is more to a value than its type."""
    return value is not None and not isinstance(value, bool)


def _path(field: str | tuple[str, ...]) -> str:
    return "$" + "".join(f'."{name}"' for name in names_of(field))
