"""Documents from files: JSON lines, or a document store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from vqdistill.documents.document import Document
from vqdistill.documents.store import DocumentStore
from vqdistill.errors import InvalidInput

_SQLITE = b"SQLite format 3\x00"


def read_documents(path: Path) -> Iterator[Document]:
    """Yield the documents of a store, or of the lines of a file.

    A line is an object with `id` (or `_id`, as in BEIR), a text or an integer, and `text`; all else is metadata.

    Raises
    ------
    InvalidInput
        If the file cannot be read, or a line is anything else.
    """
    try:
        with path.open("rb") as file:
            stored = file.read(len(_SQLITE)) == _SQLITE
        if stored:
            with DocumentStore(path) as store:
                yield from store
            return
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                yield _document(line, f"{path}, line {number}")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} must be UTF-8: {error}") from None


def _document(line: str, where: str) -> Document:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidInput(f"{where} must be a JSON object, got {line.strip()[:60]!r}") from None
    name = "_id" if isinstance(fields, dict) and "_id" in fields else "id"
    wanted = isinstance(fields, dict) and isinstance(fields.get("text"), str)
    if not wanted or isinstance(fields.get(name), bool) or not isinstance(fields.get(name), (str, int)):
        raise InvalidInput(f"{where} must have an id (text or integer) and a text, got {line.strip()[:60]!r}")
    return Document(fields.pop(name), fields.pop("text"), fields)
