"""Opens an index, of one piece or in shards."""

from __future__ import annotations

from pathlib import Path

from vqdistill.index.reader import IndexReader
from vqdistill.index.sharded import ShardedReader
from vqdistill.index.shardset import is_sharded


def open_index(path: str | Path, verify: str = "headers") -> IndexReader:
    """Open the index at `path`; see `IndexReader.open`."""
    return (ShardedReader if is_sharded(Path(path)) else IndexReader).open(path, verify)
