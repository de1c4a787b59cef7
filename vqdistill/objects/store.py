"""Objects of a store behind fsspec, as much like paths as readers of files need; every failure is one sentence."""

from __future__ import annotations

import glob
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from vqdistill.errors import InvalidInput, MissingDependency, VqdistillError

READ_BYTES = 8 << 20
"""Read at a time where a file is read from end to end: a request costs as much as a megabyte or more."""
DRIVERS = {
    "s3": ("s3fs", "'vqdistill[s3]'"),
    "s3a": ("s3fs", "'vqdistill[s3]'"),
    "gs": ("gcsfs", "gcsfs"),
    "gcs": ("gcsfs", "gcsfs"),
}
"""Scheme -> library that fsspec needs for it, and what is to be installed."""


@dataclass(frozen=True)
class Status:
    """As much of `os.stat_result` as readers of files need."""

    st_size: int


@dataclass(frozen=True, order=True)
class RemotePath:
    """A file or folder in a store as it was when it was looked up; stands in for a `Path` where files are read."""

    url: str
    size: int = field(default=0, compare=False)
    """Bytes of a file."""
    mark: str = field(default="", compare=False)
    """Tells this content from others: the store's entity tag (`etag ...`), or else the time of the last change."""
    folder: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return self.url

    @property
    def tagged(self) -> bool:
        """Whether `mark` changes with the content and nothing else."""
        return self.mark.startswith("etag ")

    @property
    def name(self) -> str:
        """See PurePath."""
        return PurePosixPath(self.url).name

    @property
    def suffix(self) -> str:
        """See PurePath."""
        return PurePosixPath(self.url).suffix

    def exists(self) -> bool:
        """Whether it was found; see Path."""
        return True

    def is_dir(self) -> bool:
        """See Path."""
        return self.folder

    def is_file(self) -> bool:
        """See Path."""
        return not self.folder

    def stat(self) -> Status:
        """See Path."""
        return Status(self.size)

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield what a folder holds; see Path."""
        fs, path = _store(self.url)
        with reaching(self.url):
            found = fs.ls(path, detail=True)
        yield from (_from_info(fs, info) for info in found if info["name"].rstrip("/") != path.rstrip("/"))

    def open(self, mode: str = "r", encoding: str | None = None, newline: str | None = None) -> IO[Any]:
        """Open for reading; what is read is fetched by ranges. See Path."""
        file = io.BufferedReader(_Ranges(self), READ_BYTES)
        return file if "b" in mode else io.TextIOWrapper(file, encoding=encoding, newline=newline)

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes start..stop; raises as `read_spans`."""
        return self.read_spans([(start, stop)])[0]

    def read_spans(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return bytes start..stop of each span, fetched at the same time where the store can.

        Raises
        ------
        InvalidInput
            If the file is gone, or has become shorter.
        VqdistillError
            If the store cannot be reached.
        """
        fs, path = _store(self.url)
        starts, stops = [start for start, _ in spans], [stop for _, stop in spans]
        with reaching(self.url):
            parts = fs.cat_ranges([path] * len(spans), starts, stops, on_error="raise")
        for part, start, stop in zip(parts, starts, stops, strict=True):
            if len(part) != stop - start:
                raise InvalidInput(f"{self.url} ends before byte {stop}, it had {self.size} when it was opened")
        return [bytes(part) for part in parts]


AnyPath = Path | RemotePath
"""Where a file to be read is."""


class _Ranges(io.RawIOBase):
    """A file to be read, of which only what is asked for is fetched."""

    def __init__(self, file: RemotePath) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._file.size)
        if stop <= self._at:
            return 0
        data = self._file.read(self._at, stop)
        buffer[: len(data)] = data
        self._at = stop
        return len(data)


def find(url: str) -> list[RemotePath]:
    """Return the file or folder of a URL, or all files that match a pattern; nothing if there is none.

    Raises
    ------
    InvalidInput
        If the scheme is unknown.
    MissingDependency
        If it needs a library that is not installed.
    VqdistillError
        If the store cannot be reached, or refuses.
    """
    fs, path = _store(url)
    with reaching(url):
        try:
            if glob.has_magic(path):
                infos = list(fs.glob(path, detail=True).values())
            else:
                infos = [fs.info(path)]
        except FileNotFoundError:
            return []
    return sorted(_from_info(fs, info) for info in infos)


def find_one(url: str) -> RemotePath:
    """Return the file of a URL.

    Raises
    ------
    InvalidInput
        If there is none; otherwise as `find`.
    """
    found = find(url)
    if len(found) != 1 or found[0].folder:
        raise InvalidInput(f"no such file: {url}")
    return found[0]


def put_file(source: Path, url: str) -> None:
    """Write the content of a local file as one object; a reader sees all of it or none.

    Raises
    ------
    VqdistillError
        If the store cannot be reached, refuses, or has no such bucket; otherwise as `find`.
    """
    fs, path = _store(url)
    with reaching(url, writing=True):
        fs.put_file(str(source), path)


def put_new(data: bytes, url: str) -> None:
    """Write a small object that must not exist.

    Raises
    ------
    InvalidInput
        If it does.
    VqdistillError
        As `put_file`.
    """
    fs, path = _store(url)
    with reaching(url, writing=True):
        try:
            fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            raise InvalidInput(f"{url} must not exist, but it does") from None


def remove(files: Sequence[RemotePath]) -> None:
    """Remove objects; raises as `find`."""
    for file in files:
        fs, path = _store(file.url)
        with reaching(file.url):
            fs.rm_file(path)


def give_up_unfinished(folder: str) -> None:
    """Have the store forget uploads in parts below a folder that were never finished, which nothing shows.

    Only S3 has them in sight; stores that name no such uploads are left alone. Raises as `find`.
    """
    fs, path = _store(folder)
    if not hasattr(fs, "list_multipart_uploads"):
        return
    bucket, _, prefix = path.partition("/")
    with reaching(folder):
        for upload in fs.list_multipart_uploads(bucket):
            if upload["Key"].startswith(f"{prefix.rstrip('/')}/"):
                fs.abort_mpu(bucket, upload["Key"], upload["UploadId"])


@contextmanager
def reaching(url: str, *, writing: bool = False) -> Iterator[None]:
    """Turn what a store's driver raises into our exceptions.

    Drivers raise what they like: exceptions of HTTP libraries, of clouds, of the operating system.
    """
    try:
        yield
    except (VqdistillError, MemoryError, ImportError):
        raise
    except FileNotFoundError:
        if writing:
            raise VqdistillError(f"{url} cannot be written: there is no such bucket") from None
        raise InvalidInput(f"no such file, folder or bucket: {url}") from None
    except Exception as error:
        said = (str(error).splitlines() or [""])[0].strip().rstrip(".") or type(error).__name__
        if isinstance(error, PermissionError) or "redential" in type(error).__name__ + said:
            raise VqdistillError(
                f"{url} is refused: {said}; give credentials as its store takes them, such as AWS_ACCESS_KEY_ID and"
                " AWS_SECRET_ACCESS_KEY"
            ) from None
        raise VqdistillError(f"{url} cannot be reached: {said}") from None


def _store(url: str) -> tuple[Any, str]:
    """File system of a URL, and its path in there."""
    scheme = url.partition("://")[0].lower()
    library, install = DRIVERS.get(scheme, ("fsspec", "'vqdistill[objects]'"))
    try:
        import fsspec
    except ImportError:
        raise MissingDependency(f"{scheme}:// needs {library}: pip install {install}") from None
    if scheme not in fsspec.available_protocols():
        raise InvalidInput(f"{url} must have a scheme that fsspec knows, such as s3, gs or file, got {scheme}")
    try:
        # Listings that are kept would hide what other processes write.
        with reaching(url):
            fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        how = f"{library}: pip install {install}" if scheme in DRIVERS else f"a driver: {error}"
        raise MissingDependency(f"{scheme}:// needs {how}") from None
    return fs, path


def _from_info(fs: Any, info: dict[str, Any]) -> RemotePath:
    tag = info.get("ETag") or info.get("etag")
    changed = next((info[key] for key in ("mtime", "LastModified", "updated", "created") if info.get(key)), "")
    return RemotePath(
        url=fs.unstrip_protocol(info["name"]),
        size=int(info.get("size") or 0),
        mark=f"etag {tag}" if tag else f"time {changed}",
        folder=info["type"] == "directory",
    )
