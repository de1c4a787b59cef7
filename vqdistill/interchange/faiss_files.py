"""Files with a faiss index, in the layouts that search frameworks load."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss

from vqdistill.documents.document import Document
from vqdistill.documents.lines import read_documents
from vqdistill.errors import InvalidInput, needed_by
from vqdistill.index.reader import IndexReader
from vqdistill.interchange.faiss_index import FaissOptions, to_faiss
from vqdistill.interchange.rows import LiveRows
from vqdistill.interchange.whole import whole_directory, whole_file

LAYOUTS = ("file", "pyserini", "langchain", "haystack")
"""One file; or a directory with what the loader of a framework reads, where faiss gives numbers from 0 on."""
FILE_NAMES = {"pyserini": "index", "langchain": "index.faiss", "haystack": "index.faiss"}
"""Of the faiss index in the directory of a layout."""


def write_faiss(
    reader: IndexReader,
    out: Path,
    options: FaissOptions,
    layout: str = "file",
    documents: Path | None = None,
) -> Path:
    """Write an open index for faiss, all of it or nothing.

    Parameters
    ----------
    out : what to make; must not exist
    layout : one of LAYOUTS
    documents : JSON lines or a document store with the texts of rows, see `read_documents`; for the layouts that hold
        texts

    Returns
    -------
    Path
        Of the file that `faiss.read_index` reads.

    Raises
    ------
    InvalidInput
        If the layout is none of these, or as `to_faiss` and `read_documents`.
    MissingDependency
        If the layout needs a library that is not installed.
    VqdistillError
        If the disk refuses.
    """
    if layout not in LAYOUTS:
        raise InvalidInput(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if documents is not None and layout not in ("langchain", "haystack"):
        raise InvalidInput(f"documents are for the layouts langchain and haystack, got layout {layout!r}")
    if layout == "file":
        with whole_file(out) as part:
            faiss.write_index(to_faiss(reader, options), str(part))
        return out
    write = {"pyserini": _pyserini, "langchain": _langchain, "haystack": _haystack}[layout]
    with whole_directory(out) as part:
        write(reader, part, _texts(documents))  # what can be refused, before what takes long
        faiss.write_index(to_faiss(reader, replace(options, numbered=True)), str(part / FILE_NAMES[layout]))
    return out / FILE_NAMES[layout]


def names(reader: IndexReader) -> Iterator[str]:
    """Yield the external id of each row as text, in the order of numbered faiss indexes."""
    for chunk in LiveRows(reader).chunks():
        yield from map(str, reader.ids_of(chunk.positions).tolist())


def _pyserini(reader: IndexReader, out: Path, texts: _Texts) -> None:
    with (out / "docid").open("w", encoding="utf-8") as file:
        for name in names(reader):
            if name != name.strip() or len(name.splitlines()) != 1:
                raise InvalidInput(f"ids must be one line each, without blanks around, got {name!r}")
            file.write(f"{name}\n")


def _langchain(reader: IndexReader, out: Path, texts: _Texts) -> None:
    with needed_by("the layout langchain", "langchain-community", extra="langchain-faiss"):
        from langchain_community.docstore.in_memory import InMemoryDocstore
        from langchain_core.documents import Document as LangchainDocument
    order = dict(enumerate(names(reader)))
    store = {
        name: LangchainDocument(id=name, page_content=texts[name].text, metadata=texts[name].metadata)
        for name in order.values()
    }
    with (out / "index.pkl").open("wb") as file:
        pickle.dump((InMemoryDocstore(store), order), file)


def _haystack(reader: IndexReader, out: Path, texts: _Texts) -> None:
    order = dict(enumerate(names(reader)))
    content = {
        "documents": [
            {"id": name, "content": texts[name].text, "meta": texts[name].metadata} for name in order.values()
        ],
        "id_map": order,
        "inverse_id_map": {name: at for at, name in order.items()},
        "next_id": len(order),
    }
    (out / "index.json").write_text(json.dumps(content), encoding="utf-8")


class _Texts(dict[str, Document]):
    """Documents by id; those that are missing are empty."""

    def __missing__(self, key: str) -> Document:
        return Document(key, "")


def _texts(documents: Path | None) -> _Texts:
    return _Texts() if documents is None else _Texts((str(each.id), each) for each in read_documents(documents))


def read_faiss(path: Path, **options: Any) -> faiss.Index:
    """Read a faiss index.

    Raises
    ------
    InvalidInput
        If the file holds none.
    """
    try:
        return faiss.read_index(str(path), **options)
    except RuntimeError as error:
        raise InvalidInput(f"{path} must be a file with a faiss index: {error}") from None
