"""What a compaction has finished, kept on disk, so that the next one goes on where a killed one ended."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from pathlib import Path
from typing import ClassVar

from vqdistill.errors import CorruptIndex
from vqdistill.index.fields import Fields, parse_json
from vqdistill.index.files import FileOps, open_segment, read_small, replace_file
from vqdistill.index.manifest import Manifest
from vqdistill.index.manifest_parts import parse_segment
from vqdistill.index.spec import MANIFEST_MAX_BYTES, ROW_KINDS, Layout, Segment


class CompactionLog:
    """Segments that are on stable storage, in a file that no reader looks at.

    Parameters
    ----------
    manifest : of the generation that is compacted; what was finished for another one is of no use
    """

    FILE: ClassVar[str] = "compaction.tmp-000000000000"

    def __init__(self, ops: FileOps, directory: Path, manifest: Manifest) -> None:
        self._ops, self._directory, self._manifest = ops, directory, manifest
        self.finished: list[Segment] = []
        """Those noted so far."""

    def resume(self, layout: Layout, generation: int) -> tuple[int, list[Segment]]:
        """Return the number of the files to write, and the segments that need not be written again.

        Parameters
        ----------
        layout : of the set that is written
        generation : to write if there is nothing to go on with
        """
        number, segments = self._read(layout)
        if not segments:
            with contextlib.suppress(FileNotFoundError):
                self._ops.unlink(self._directory / self.FILE)
            return generation, []
        self.finished = segments
        done = {segment.file for segment in segments}
        for kind in ROW_KINDS:
            name = f"{kind}-{number}.seg"
            if name not in done and os.path.lexists(self._directory / name):
                self._ops.unlink(self._directory / name)
        return number, list(segments)

    def note(self, generation: int, segments: list[Segment]) -> None:
        """Keep segments that are on stable storage, but for their names."""
        self.finished += segments
        doc = {
            "source": self._source,
            "generation": generation,
            "segments": {segment.kind: segment.to_json() for segment in self.finished},
        }
        replace_file(self._ops, self._directory, self.FILE, json.dumps(doc, sort_keys=True).encode("ascii"))

    @property
    def _source(self) -> str:
        return f"{self._manifest.file} {zlib.crc32(self._manifest.to_bytes()):08x}"

    def _read(self, layout: Layout) -> tuple[int, list[Segment]]:
        if not os.path.lexists(self._directory / self.FILE):
            return 0, []
        try:
            top = Fields(parse_json(read_small(self._directory / self.FILE, MANIFEST_MAX_BYTES), self.FILE), self.FILE)
            if top.values.get("source") != self._source:
                return 0, []
            generation, arrays = top.integer("generation", 1, 10**9 - 1), layout.row_arrays
            entries = top.object("segments")
            segments = [
                parse_segment(entries.object(kind), kind, arrays[kind], generation)
                for kind in arrays
                if kind in entries.values
            ]
            for segment in segments:
                os.close(open_segment(self._directory, segment, self._manifest.index_id))
        except CorruptIndex:
            return 0, []
        return generation, [segment for segment in segments if segment.generation == generation]
