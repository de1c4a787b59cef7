"""Texts of documents, from JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqdistill.errors import InvalidInput


@dataclass(frozen=True)
class Document:
    """What goes along with a row."""

    text: str
    metadata: dict[str, Any]


def read_documents(path: Path) -> Iterator[tuple[str, Document]]:
    """Yield (id, document) of each line: an object with `id` (or `_id`, as in BEIR) and `text`; all else is metadata.

    Raises
    ------
    InvalidInput
        If the file cannot be read, or a line is anything else.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield _document(line, f"{path}, line {number}")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} must be UTF-8: {error}") from None


def _document(line: str, where: str) -> tuple[str, Document]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidInput(f"{where} must be a JSON object, got {line.strip()[:60]!r}") from None
    name = "_id" if isinstance(fields, dict) and "_id" in fields else "id"
    wanted = isinstance(fields, dict) and isinstance(fields.get("text"), str)
    if not wanted or isinstance(fields.get(name), bool) or not isinstance(fields.get(name), (str, int)):
        raise InvalidInput(f"{where} must have an id (text or integer) and a text, got {line.strip()[:60]!r}")
    return str(fields.pop(name)), Document(fields.pop("text"), fields)
