"""Filters over the metadata of documents: small typed values, or JSON that is read into them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vqdistill.documents.document import is_unicode
from vqdistill.errors import InvalidInput

Scalar = str | int | float | bool | None
"""What a field is compared with. A number is no text, and True no number."""

COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
MAX_DEPTH = 32
"""Filters within filters; what SQLite takes ends at a thousand."""
MAX_PARTS = 256
"""Filters in one, itself included; `In` holds any number of values."""

_UNADDRESSABLE = re.compile(r'["\\\x00-\x1f]')


@dataclass(frozen=True)
class _Logic:
    """What all filters have in common: `&`, `|` and `~` combine them."""

    def __and__(self, other: Filter) -> All:
        return All((self, other))  # type: ignore[arg-type]

    def __or__(self, other: Filter) -> AnyOf:
        return AnyOf((self, other))  # type: ignore[arg-type]

    def __invert__(self) -> Not:
        return Not(self)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Compare(_Logic):
    """A field against a value of the same type; what is of another type, or missing, is unequal, and not ordered."""

    field: str | tuple[str, ...]
    """Name; dots lead into nested objects. As a tuple, the names on the way, which may have dots themselves."""
    op: str
    """One of COMPARISONS; order is for numbers and texts (by code point). `!=` is the opposite of `==`."""
    value: Scalar
    """None is equal to a field that is null or missing."""

    def __post_init__(self) -> None:
        _require_field(self.field)
        if self.op not in COMPARISONS:
            raise InvalidInput(f"op of a filter must be one of {', '.join(COMPARISONS)}, got {self.op!r}")
        _require_scalar(self.value, self.field)
        if self.op not in ("==", "!=") and (self.value is None or isinstance(self.value, bool)):
            raise InvalidInput(
                f"filter on {_shown(self.field)} must order numbers or texts, got {self.op} {self.value!r}"
            )


@dataclass(frozen=True)
class In(_Logic):
    """A field that equals one of some values, as `Compare` has it."""

    field: str | tuple[str, ...]
    values: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        _require_field(self.field)
        if isinstance(self.values, str) or not isinstance(self.values, Iterable):
            raise InvalidInput(f"filter on {_shown(self.field)} must have a list of values, got {self.values!r}")
        object.__setattr__(self, "values", tuple(self.values))
        for value in self.values:
            _require_scalar(value, self.field)


@dataclass(frozen=True)
class Contains(_Logic):
    """A list that has an element equal to a value, or a text that has the value in it, case and all."""

    field: str | tuple[str, ...]
    value: Scalar

    def __post_init__(self) -> None:
        _require_field(self.field)
        _require_scalar(self.value, self.field)


@dataclass(frozen=True)
class Exists(_Logic):
    """A field that is there and not null."""

    field: str | tuple[str, ...]

    def __post_init__(self) -> None:
        _require_field(self.field)


@dataclass(frozen=True)
class Empty(_Logic):
    """A field that is missing, null, "", or a list without elements."""

    field: str | tuple[str, ...]

    def __post_init__(self) -> None:
        _require_field(self.field)


@dataclass(frozen=True)
class All(_Logic):
    """What passes all parts; without parts, everything."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class AnyOf(_Logic):
    """What passes some part; without parts, nothing."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Not(_Logic):
    """What does not pass a part: every document passes either a filter or its opposite."""

    part: Filter


Filter = Compare | In | Contains | Exists | Empty | All | AnyOf | Not


def as_filter(where: Any) -> Filter:
    """Return a filter as it is, or read one from JSON: {"year": {"$gte": 2020}, "lang": "en"}.

    Fields of an object, and operators of a field, must all pass. Operators are $eq, $ne, $lt, $lte, $gt, $gte, $in,
    $nin, $contains, $exists and $empty, a plain value is $eq; $and and $or take lists of filters, $not a filter.

    Raises
    ------
    InvalidInput
        If it is no such thing.
    """
    if isinstance(where, (Compare, In, Contains, Exists, Empty, All, AnyOf, Not)):
        return where
    return _read(where, 0)


def _read(where: Any, depth: int) -> Filter:
    if depth > MAX_DEPTH:
        raise InvalidInput(f"a filter must be nested {MAX_DEPTH} deep at most")
    if not isinstance(where, Mapping):
        raise InvalidInput(f'a filter must be an object such as {{"year": {{"$gte": 2020}}}}, got {where!r}')
    parts: list[Filter] = []
    for name, value in where.items():
        if name in ("$and", "$or"):
            if not isinstance(value, (list, tuple)):
                raise InvalidInput(f"{name} of a filter must have a list of filters, got {value!r}")
            inner = tuple(_read(part, depth + 1) for part in value)
            parts.append(All(inner) if name == "$and" else AnyOf(inner))
        elif name == "$not":
            parts.append(Not(_read(value, depth + 1)))
        elif isinstance(name, str) and name.startswith("$"):
            raise InvalidInput(f"a filter must have fields, $and, $or or $not, got {name}")
        elif isinstance(value, Mapping):
            parts += [_operator(name, op, wanted) for op, wanted in value.items()]
        else:
            parts.append(Compare(name, "==", value))
    return parts[0] if len(parts) == 1 else All(tuple(parts))


_OPERATORS = {"$eq": "==", "$ne": "!=", "$lt": "<", "$lte": "<=", "$gt": ">", "$gte": ">="}


def _operator(field: str, op: str, value: Any) -> Filter:
    if op in _OPERATORS:
        return Compare(field, _OPERATORS[op], value)
    if op in ("$in", "$nin"):
        found = In(field, value)
        return found if op == "$in" else Not(found)
    if op == "$contains":
        return Contains(field, value)
    if op in ("$exists", "$empty"):
        if not isinstance(value, bool):
            raise InvalidInput(f"{op} of {_shown(field)} must be true or false, got {value!r}")
        holds = Exists(field) if op == "$exists" else Empty(field)
        return holds if value else Not(holds)
    known = ", ".join([*_OPERATORS, "$in", "$nin", "$contains", "$exists", "$empty"])
    raise InvalidInput(f"operator of {_shown(field)} must be one of {known}, got {op!r}")


def names_of(field: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the names on the way to a field."""
    return tuple(field.split(".")) if isinstance(field, str) else field


def _require_field(field: Any) -> None:
    texts = isinstance(field, str) or (isinstance(field, tuple) and all(isinstance(name, str) for name in field))
    if not texts or not field or not all(names_of(field)):
        raise InvalidInput(f"field of a filter must be a name, or names with dots between, got {field!r}")
    if any(_UNADDRESSABLE.search(name) or not is_unicode(name) for name in names_of(field)):
        raise InvalidInput(f"field of a filter must have no quote, backslash or control character, got {field!r}")


def _require_scalar(value: Any, field: Any) -> None:
    fits = value is None or isinstance(value, (str, int, float))
    if isinstance(value, str):
        fits = is_unicode(value)
    elif isinstance(value, int):
        fits = -(2**63) <= value < 2**63
    elif isinstance(value, float):
        fits = math.isfinite(value)
    if not fits:
        raise InvalidInput(
            f"filter on {_shown(field)} must be by a text, a number of 64 bits, true, false or null, got {value!r}"
        )


def _shown(field: Any) -> str:
    return field if isinstance(field, str) else ".".join(field)
