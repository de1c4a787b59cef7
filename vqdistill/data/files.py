"""From a path to what it holds: one file, one array of a container, or the shards of a folder or glob."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vqdistill.data.containers import Container, NpzContainer, SafetensorsContainer
from vqdistill.data.flat import BINS, READ_ERRORS, VECS, open_bin, open_npy, open_vecs
from vqdistill.data.hdf5 import Hdf5Container
from vqdistill.data.ids import Piece
from vqdistill.data.lance import SUFFIX as LANCE
from vqdistill.data.lance import LanceContainer, is_dataset, stamp
from vqdistill.data.parquet import ParquetContainer
from vqdistill.data.ranges import open_npy_by_ranges
from vqdistill.data.shards import ShardTable
from vqdistill.data.tables import Table, choose_key
from vqdistill.errors import InvalidInput
from vqdistill.objects.store import AnyPath, RemotePath, find
from vqdistill.objects.urls import is_url, local_name

_CONTAINERS: dict[str, Callable[[Any], Container]] = {
    ".npz": NpzContainer,
    ".h5": Hdf5Container,
    ".hdf5": Hdf5Container,
    LANCE: LanceContainer,
    ".parquet": ParquetContainer,
    ".safetensors": SafetensorsContainer,
}
_FLAT: dict[str, Callable[[Path], Table]] = {".npy": open_npy}
_FLAT |= dict.fromkeys(VECS, open_vecs) | dict.fromkeys(BINS, open_bin)
SUFFIXES = (*_FLAT, *_CONTAINERS)
"""Name endings of files that can be read, and of directories that count as files."""
CONTAINER_SUFFIXES = tuple(_CONTAINERS)
"""Those of files that hold several named arrays."""
REMOTE_SUFFIXES = (".npy", LANCE, ".parquet")
"""Those of embeddings that can be read by ranges out of an object store."""


def resolve(text: str) -> tuple[list[AnyPath], str | None]:
    """Split `FILE[:key]`, `FOLDER[:key]` or `GLOB[:key]`, which may be a URL, at a colon whose left side exists.

    Raises
    ------
    InvalidInput
        If nothing of that name exists.
    """
    text = local_name(text)
    front, colon, key = text.rpartition(":")
    whole_only = not colon or not front or (is_url(text) and not is_url(front))
    for name, part in ((text, None),) if whole_only else ((text, None), (front, key)):
        found: list[AnyPath] = [*find(name)] if is_url(name) else _find_local(name)
        if found:
            return found, part
    raise InvalidInput(f"no such file or folder: {text}")


def open_path(text: str, prefer: tuple[str, ...]) -> tuple[Table, list[Container]]:
    """Open the table that a path names.

    Parameters
    ----------
    text : path, with `:key` for one array of a container; a folder or glob pattern stands for all shards in it
    prefer : names looked for when there is no key

    Returns
    -------
    table : all rows
    containers : files that it is in: none for files of one array, one for each shard

    Raises
    ------
    InvalidInput
        If there is no such thing, or it is damaged, empty or no table of numbers.
    """
    return open_files(text, files_of(text), prefer)


def files_of(text: str) -> list[tuple[AnyPath, str | None]]:
    """Return the files that a path names, as for `open_path`, and the key in each.

    Raises
    ------
    InvalidInput
        If there is none.
    """
    paths, key = resolve(text)
    if len(paths) > 1 or not is_one_file(paths[0]):
        paths = _shard_files(paths, text)
    return [(path, key) for path in paths]


def is_one_file(path: AnyPath) -> bool:
    """Whether a path is a file or a dataset, rather than a folder of shards."""
    return path.is_file() or is_dataset(path)


def files_in(path: AnyPath) -> list[AnyPath]:
    """Return what lies in a folder, in lexicographic order; of a file or dataset, itself."""
    inside: Iterable[AnyPath] = [path] if is_one_file(path) else path.iterdir()
    return sorted(inside, key=str)


def stamp_of(path: AnyPath) -> tuple[int, int | str]:
    """Return size and what tells the content of a file or dataset from others: of a local file the time of change."""
    if is_dataset(path):
        return stamp(path)
    if isinstance(path, RemotePath):
        return path.size, path.mark
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def open_files(
    name: str, files: Sequence[tuple[AnyPath, str | None]], prefer: tuple[str, ...]
) -> tuple[Table, list[Container]]:
    """Open files of `files_of` as one table, in this order.

    Parameters
    ----------
    name : what messages call several files
    prefer : as for `open_path`, as are results and errors
    """
    opened = [_open_file(path, key, prefer) for path, key in files]
    tables = [table for table, _ in opened]
    table = ShardTable(name, tables) if len(tables) > 1 else tables[0]
    return table, [container for _, container in opened if container]


def open_container(path: AnyPath) -> Container:
    """Open a file of named arrays.

    Raises
    ------
    InvalidInput
        If it is no such file, or damaged.
    """
    _check_file(path, CONTAINER_SUFFIXES)
    try:
        return _CONTAINERS[path.suffix.lower()](path)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror or error}") from None


def read_pieces(path: AnyPath, key: str | None, prefer: tuple[str, ...]) -> Iterable[Piece]:
    """Read an array of any shape and type, such as ids or labels, piece by piece.

    Parameters
    ----------
    path : .npy or a container
    key : array or column in a container; None = the first of `prefer` that exists, or else the only array there is

    Raises
    ------
    InvalidInput
        If there is no such array, or it cannot be read.
    """
    _check_file(path, (".npy", *CONTAINER_SUFFIXES))
    if path.suffix.lower() != ".npy":
        container = open_container(path)
        only = tuple(container.shapes) if len(container.shapes) == 1 else ()
        return container.pieces(choose_key(str(path), dict.fromkeys(container.shapes, ()), key, prefer + only))
    try:
        if isinstance(path, RemotePath):
            return [np.load(path.open("rb"), allow_pickle=False)]
        return [np.load(path, mmap_mode="r", allow_pickle=False)]
    except READ_ERRORS as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from None


def _find_local(name: str) -> list[AnyPath]:
    """The file or folder of a name, or what matches a pattern."""
    try:
        if Path(name).exists():
            return [Path(name)]
    except (OSError, ValueError):  # too long, a null byte, or a folder that may not be entered
        pass
    return [Path(path) for path in sorted(glob.glob(name))] if glob.has_magic(name) else []


def _check_file(path: AnyPath, suffixes: tuple[str, ...]) -> None:
    if isinstance(path, RemotePath) and path.suffix.lower() in SUFFIXES and path.suffix.lower() not in REMOTE_SUFFIXES:
        raise InvalidInput(
            f"{path} must end in {', '.join(REMOTE_SUFFIXES[:-1])} or {REMOTE_SUFFIXES[-1]} to be read from an object"
            f" store, got {path.suffix!r}: copy it to a disk"
        )
    if path.suffix.lower() not in suffixes:
        raise InvalidInput(f"{path} has an unknown suffix {path.suffix!r}, known are {', '.join(suffixes)}")
    if not is_one_file(path):
        raise InvalidInput(f"{path} is not a file")
    if path.is_file() and path.stat().st_size == 0:
        raise InvalidInput(f"{path} is empty: it has 0 bytes")
    if path.suffix.lower() == LANCE and not path.is_dir():
        raise InvalidInput(f"{path} must be a directory, as every Lance dataset is, got a file")


def _open_file(path: AnyPath, key: str | None, prefer: tuple[str, ...]) -> tuple[Table, Container | None]:
    _check_file(path, SUFFIXES)
    if path.suffix.lower() not in _FLAT:
        container = open_container(path)
        return container.table(choose_key(str(path), container.shapes, key, prefer)), container
    if key is not None:
        raise InvalidInput(f"{path} holds one array and takes no key, got {key!r}")
    try:
        if isinstance(path, RemotePath):
            return open_npy_by_ranges(path), None
        return _FLAT[path.suffix.lower()](path), None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror or error}") from None


def _shard_files(paths: list[AnyPath], text: str) -> list[AnyPath]:
    """Files of a folder, or those that a glob has found; all of one suffix."""
    if len(paths) == 1:
        paths = [path for path in files_in(paths[0]) if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    paths = [path for path in paths if is_one_file(path)]
    if not paths:
        raise InvalidInput(f"{text} holds no shards, which end in {', '.join(SUFFIXES)}")
    odd = next((path for path in paths if path.suffix != paths[0].suffix), None)
    if odd is not None:
        raise InvalidInput(f"shards must all be of one suffix, got {paths[0].name} and {odd.name} in {text}")
    return paths
