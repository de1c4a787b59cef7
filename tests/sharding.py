"""Small indexes in shards for the tests, of the rows of `searching.embeddings`."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.searching import N, embeddings, prepared, trained
from vqdistill.index.files import FileOps
from vqdistill.index.policy import SearchPolicy
from vqdistill.index.shardset import ShardSet, name_of, shard_of, write_shards
from vqdistill.index.writer import IndexWriter
from vqdistill.types import Codes

CUTS = [0, 400, 401, 700, N]
"""Where shards begin; one has a single row."""


def write_sharded(
    path: Path,
    metric: str = "ip",
    *,
    search: SearchPolicy,
    additive: bool = False,
    dense: str = "f32",
    tables: str = "f32",
    ids: Any = None,
    certificate: Any = None,
) -> None:
    """Write the rows that `searching.write_index` writes, as an index in shards."""
    model, codes = trained(metric, additive)
    rows = prepared(metric, embeddings(0)[0])
    kind = "rows" if ids is None else "str" if isinstance(ids[0], str) else "int64"
    path.mkdir()
    shards = []
    for number, (a, b) in enumerate(pairwise(CUTS)):
        place = path / name_of(number)
        index_id = hashlib.blake2b(str(place).encode(), digest_size=16).digest()
        with IndexWriter(place, model, dense=dense, tables=tables, ids=kind, index_id=index_id, first_row=a) as writer:
            writer.add(None if ids is None else ids[a:b], Codes(codes.lists[a:b], codes.codes[a:b]), rows[a:b])
            manifest = writer.publish({}, search, {})
        shards.append(shard_of(manifest, a))
    write_shards(
        FileOps(),
        path,
        ShardSet(
            generation=1,
            index_id=hashlib.blake2b(str(path).encode(), digest_size=16).digest(),
            model_id=manifest.model_id,
            search=search.to_json(),
            certificate=None if certificate is None else certificate.to_json(),
            shards=tuple(shards),
        ),
    )
