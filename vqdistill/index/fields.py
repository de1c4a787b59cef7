"""JSON that may be hostile: parsing with bounds, and typed access whose complaints name file and place."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn

from vqdistill.errors import CorruptIndex

_MAX_DEPTH = 64
_MAX_DIGITS = 20


class Fields:
    """Typed access to a JSON object; every complaint names the file and the place in it."""

    def __init__(self, values: Any, file: str, place: str = "") -> None:
        self.values, self.file, self.place = values, file, place
        if not isinstance(values, dict):
            raise CorruptIndex(
                f"{file}: {place.rstrip('.') or 'the manifest'} must be a JSON object, got {show(values)}"
            )

    def fail(self, key: str, got: Any, wanted: str) -> NoReturn:
        """Raise CorruptIndex: `key` must be `wanted`, but is `got`."""
        raise CorruptIndex(f"{self.file}: {self.place}{key} must be {wanted}, got {show(got)}")

    def require_keys(self, wanted: frozenset[str]) -> None:
        """Require these keys and no others."""
        if self.values.keys() != wanted:
            got, want = sorted(self.values.keys() - wanted), sorted(wanted - self.values.keys())
            where = self.place.rstrip(".") or "the manifest"
            raise CorruptIndex(f"{self.file}: {where} lacks the keys {show(want)} and has the unknown keys {show(got)}")

    def _get(self, key: str, ok: Callable[[Any], bool], wanted: str) -> Any:
        value = self.values.get(key)
        if not ok(value):
            self.fail(key, value, wanted)
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        """Return an integer in low..high."""
        value: int = self._get(key, lambda v: is_int(v, low, high), f"an integer in {low}..{high}")
        return value

    def number_or_null(self, key: str, low: float, high: float) -> float | None:
        """Return a number above `low`, up to `high`, or None for null."""

        def ok(v: Any) -> bool:
            return v is None or (isinstance(v, (int, float)) and not isinstance(v, bool) and low < v <= high)

        value = self._get(key, ok, f"null or a number in ({low:g}, {high:g}]")
        return None if value is None else float(value)

    def number(self, key: str, low: float, high: float) -> float:
        """Return a number in low..high."""

        def ok(v: Any) -> bool:
            return isinstance(v, (int, float)) and not isinstance(v, bool) and low <= v <= high

        return float(self._get(key, ok, f"a number in {low:g}..{high:g}"))

    def boolean(self, key: str) -> bool:
        """Return true or false."""
        value: bool = self._get(key, lambda v: isinstance(v, bool), "true or false")
        return value

    def choice(self, key: str, options: tuple[str, ...]) -> str:
        """Return one of `options`."""
        value: str = self._get(key, lambda v: isinstance(v, str) and v in options, "one of " + ", ".join(options))
        return value

    def object(self, key: str) -> Fields:
        """Return an object inside this one."""
        return Fields(self.values.get(key), self.file, f"{self.place}{key}.")

    def object_or_null(self, key: str) -> Fields | None:
        """Return an object inside this one, or None for null."""
        return None if key in self.values and self.values[key] is None else self.object(key)

    def objects(self, key: str, least: int, most: int) -> list[Fields]:
        """Return a list of objects."""

        def ok(v: Any) -> bool:
            return isinstance(v, list) and least <= len(v) <= most

        entries = self._get(key, ok, f"a list of {least}..{most} objects")
        return [Fields(entry, self.file, f"{self.place}{key}[{i}].") for i, entry in enumerate(entries)]

    def matching(self, key: str, pattern: str, wanted: str) -> str:
        """Return text that all of `pattern` matches."""
        value: str = self._get(key, lambda v: isinstance(v, str) and re.fullmatch(pattern, v) is not None, wanted)
        return value


def parse_json(data: bytes, file: str) -> Any:
    """Parse UTF-8 JSON with unique keys, finite numbers, integers of at most 20 digits and a nesting of at most 64.

    Raises
    ------
    CorruptIndex
        If `data` is anything else; the message begins with `file`.
    """
    try:
        doc = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_pairs,
            parse_int=_short_int,
            parse_float=_finite_float,
            parse_constant=_no_constant,
        )
    except RecursionError:
        raise CorruptIndex(f"{file}: JSON must nest at most {_MAX_DEPTH} deep, got more") from None
    except ValueError as error:
        raise CorruptIndex(f"{file}: the manifest must be JSON, got {show(str(error))}") from None
    _check_tree(doc, file)
    return doc


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    doc = dict(pairs)
    if len(doc) != len(pairs):
        raise ValueError("a repeated key")
    return doc


def _short_int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"an integer of more than {_MAX_DIGITS} digits")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]}, which is not finite")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text}, which is not JSON")


def _check_tree(doc: Any, file: str) -> None:
    """Bound the depth, so that no later recursion over it can fail, and refuse text that cannot be printed."""
    level, depth = [doc], 0
    while level:
        depth += 1
        if depth > _MAX_DEPTH:
            raise CorruptIndex(f"{file}: JSON must nest at most {_MAX_DEPTH} deep, got more")
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str) and not value.isascii() and not _is_unicode(value):
                raise CorruptIndex(f"{file}: text must be valid Unicode, got {show(value)}")
        level = below


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def is_int(value: Any, low: int, high: int) -> bool:
    """Whether `value` is an integer, and no bool, in low..high."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def show(value: Any) -> str:
    """Return a short printable form of any value, for messages."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
