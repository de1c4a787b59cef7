"""Indexes in object stores: made here and uploaded, CURRENT last, or fetched and checked; nothing is opened there.

A store renames nothing, so what makes an index of a set of objects is CURRENT: no reader looks at others before it.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path, PurePosixPath

from vqdistill.errors import CorruptIndex, InvalidInput, VqdistillError
from vqdistill.index.files import (
    CURRENT,
    CURRENT_MAX_BYTES,
    FileOps,
    created,
    read_manifest,
    removed_on_failure,
    replace_file,
    require_to_make,
    temporary_name,
)
from vqdistill.index.manifest import Manifest
from vqdistill.index.spec import MANIFEST_MAX_BYTES, is_leftover, parse_current
from vqdistill.index.verify import verify
from vqdistill.objects.store import (
    READ_BYTES,
    RemotePath,
    find,
    find_one,
    give_up_unfinished,
    put_file,
    put_new,
    remove,
)
from vqdistill.objects.urls import is_url, local_name
from vqdistill.progress import Progress, Stage

_AT_ONCE = 8  # ranges fetched at the same time


class Destination:
    """Where an index is to appear: a local path, or a URL at which it is uploaded when it is finished here.

    Parameters
    ----------
    out : path or URL; one that ends in a name
    stage : folder in which the index of a URL is made first; None = the working directory
    """

    def __init__(self, out: str | Path, stage: Path | None = None) -> None:
        text = local_name(out)
        self.url = text.rstrip("/") if is_url(text) else None
        """None for a local path."""
        self.local = Path(text)
        """Where the index is made."""
        if self.url is not None:
            self.local = (Path.cwd() if stage is None else stage) / f"{PurePosixPath(self.url).name}.upload"

    def __str__(self) -> str:
        return self.url or str(self.local)

    def exists(self) -> bool:
        """Whether something is there; what a killed upload has left is not.

        Raises
        ------
        InvalidInput
            If objects that are of no index lie at the URL.
        MissingDependency, VqdistillError
            If the store cannot be reached.
        """
        return os.path.lexists(self.local) if self.url is None else CURRENT in self._objects(self.url)

    def require_writable(self) -> None:
        """Try whether objects can be written at the URL, before the work that ends there; raises as `put_file`."""
        if self.url is not None and not self.exists():
            probe = f"{self.url}/{temporary_name(Path(CURRENT))}"
            put_new(b"", probe)
            remove([find_one(probe)])

    def published(self) -> Manifest:
        """Return the manifest of the index that is there; raises as `read_manifest`."""
        return read_manifest(self.local) if self.url is None else read_remote_manifest(self.url)[2]

    def upload(self, progress: Progress) -> None:
        """Bring the finished index from where it was made to its URL, and remove it here; a local one is there already.

        What a killed upload has left is removed first. Segments and manifest come under the names that they keep, and
        when all are there in full length CURRENT, which is written only if there is none.

        Raises
        ------
        InvalidInput
            If there is an index, or something else, by now; then what was made is removed.
        VqdistillError
            If the store cannot be reached; then it stays here, to be uploaded again.
        """
        if self.url is None:
            return
        try:
            self._upload(self.url, progress)
        except InvalidInput:
            self.tidy()
            raise
        self.tidy()

    def tidy(self) -> None:
        """Remove what was made here for a URL."""
        if self.url is not None:
            FileOps().remove_tree(self.local)

    def _upload(self, url: str, progress: Progress) -> None:
        manifest = read_manifest(self.local)
        if CURRENT in (left := self._objects(url)):
            raise InvalidInput(f"{url} exists by now; remove it or choose another name")
        remove(list(left.values()))
        give_up_unfinished(url)
        names = [*dict.fromkeys(segment.file for segment in manifest.all_segments), manifest.file]
        sizes = {name: (self.local / name).stat().st_size for name in names}
        with progress.stage("upload", sum(sizes.values()), "B") as stage:
            for name in names:
                put_file(self.local / name, f"{url}/{name}")
                stage.advance(sizes[name])
        there = {name: file.size for name, file in self._objects(url).items()}
        if there != sizes:
            raise VqdistillError(f"{url} must hold the {len(names)} files that were uploaded, and no others: try again")
        put_new((self.local / CURRENT).read_bytes(), f"{url}/{CURRENT}")

    def _objects(self, url: str) -> dict[str, RemotePath]:
        """What lies at a URL, by name: an index, a part of one, or nothing."""
        found = {file.name: file for each in find(url) for file in (each.iterdir() if each.folder else [each])}
        odd = next((file for name, file in sorted(found.items()) if name != CURRENT and not is_leftover(name)), None)
        if odd is not None:
            raise InvalidInput(f"{url} must hold nothing, or what a killed upload left, but there is {odd}")
        return found


def read_remote_manifest(url: str) -> tuple[bytes, bytes, Manifest]:
    """Read CURRENT and the manifest that it names out of an object store.

    Returns
    -------
    Content of CURRENT and of the manifest, and the manifest.

    Raises
    ------
    InvalidInput
        If there is no index.
    CorruptIndex, FormatTooNew, FormatTooOld
        If a file is missing, too long, not what its checksum says, or says what it may not.
    VqdistillError
        If the store cannot be reached.
    """
    if not find(f"{url}/{CURRENT}"):
        raise InvalidInput(f"{url} holds no index: there is no {CURRENT}")
    current = _small(f"{url}/{CURRENT}", CURRENT_MAX_BYTES)
    name, crc = parse_current(current)
    data = _small(f"{url}/{name}", MANIFEST_MAX_BYTES)
    if zlib.crc32(data) != crc:
        raise CorruptIndex(f"{url}/{name}: crc32 must be {crc:08x} as CURRENT says, got {zlib.crc32(data):08x}")
    return current, data, Manifest.parse(data, name)


def fetch_index(url: str, out: str | Path, *, progress: Progress | None = None, ops: FileOps | None = None) -> Manifest:
    """Bring an index from an object store to this machine: every byte is checked before it appears, by one rename.

    Parameters
    ----------
    url : of the index
    out : directory to make; must not exist
    ops : file operations; replaced in tests

    Raises
    ------
    InvalidInput
        If there is no index, or `out` exists.
    CorruptIndex, FormatTooNew, FormatTooOld
        If it is damaged, or of another version.
    VqdistillError
        If the store cannot be reached, or the disk refuses; nothing is left at `out`.
    """
    out, ops, progress = Path(local_name(out)), ops or FileOps(), progress or Progress()
    if not is_url(url):
        raise InvalidInput(f"what is fetched must be a URL, such as s3://bucket/corpus.vqd, got {url}")
    require_to_make(out)
    url, temporary = url.rstrip("/"), temporary_name(out)
    current, data, manifest = read_remote_manifest(url)
    files = {segment.file: segment.file_bytes for segment in manifest.all_segments}
    with removed_on_failure(ops, temporary, out):
        ops.make_dir(temporary)
        with progress.stage("fetch", sum(files.values()), "B") as stage:
            for name, size in files.items():
                _fetch(ops, _sized(f"{url}/{name}", size), temporary / name, stage)
        replace_file(ops, temporary, manifest.file, data)
        replace_file(ops, temporary, CURRENT, current)
        if problems := verify(temporary):
            raise CorruptIndex(f"{url} is damaged: {problems[0]}")
        ops.rename(temporary, out)
        ops.sync_dir(out.absolute().parent)
    return manifest


def _fetch(ops: FileOps, file: RemotePath, target: Path, stage: Stage) -> None:
    with created(ops, target) as fd:
        for first in range(0, file.size, _AT_ONCE * READ_BYTES):
            starts = range(first, min(first + _AT_ONCE * READ_BYTES, file.size), READ_BYTES)
            for part in file.read_spans([(start, min(start + READ_BYTES, file.size)) for start in starts]):
                ops.write(fd, part)
                stage.advance(len(part))
        ops.sync(fd)


def _sized(url: str, size: int) -> RemotePath:
    """The object of a segment."""
    found = find(url)
    if not found or found[0].folder:
        raise CorruptIndex(f"{url} of the index is missing")
    if found[0].size != size:
        raise CorruptIndex(f"{url}: file size must be {size} bytes, got {found[0].size}")
    return found[0]


def _small(url: str, limit: int) -> bytes:
    file = find_one(url)
    if file.size > limit:
        raise CorruptIndex(f"{url}: file size must be at most {limit} bytes, got {file.size}")
    return file.read(0, file.size)
