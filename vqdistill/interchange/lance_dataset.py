"""An index as a Lance dataset: our centroids, our codebook and the dense rows; codes are made again by Lance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from vqdistill.errors import InvalidInput
from vqdistill.index.reader import IndexReader
from vqdistill.interchange.rows import LiveRows, require_product, turned, words_of_rows
from vqdistill.interchange.whole import whole_directory
from vqdistill.types import Metric

TABLE = "rows"
"""Name of the table in a LanceDB database at the directory."""
ROTATION = "rotation.npy"
"""File with what queries are multiplied with, beside the table."""
_METRICS = {Metric.COSINE: "cosine", Metric.IP: "dot", Metric.L2: "l2"}


def write_lance(reader: IndexReader, out: Path) -> None:
    """Write a directory with the table `rows` (columns `id` and `vector`, IVF_PQ of 4 bits) and the rotation.

    Vectors are turned as codes are: a search asks for `rotation @ query`. Lists are those of `coarse`, whose order
    queries visit them in as well; Lance assigns and codes rows by the nearest centroid and codewords.

    Raises
    ------
    InvalidInput
        If Lance has no words for something, or `out` exists.
    VqdistillError
        If the disk refuses.
    """
    require_product(reader, "Lance", "codes rows from their vectors")
    model, manifest = reader.model, reader.manifest
    if model.residual and manifest.metric is Metric.IP:
        raise InvalidInput("Lance codes rows themselves under its metric dot, got an index of residual codes")
    with whole_directory(out) as part:
        table = str(part / f"{TABLE}.lance")
        batches = pa.RecordBatchReader.from_batches(_schema(reader), _batches(reader))
        dataset = lance.write_dataset(batches, table)
        value = _value(reader).to_pandas_dtype()
        dataset.create_index(
            "vector",
            "IVF_PQ",
            metric=_METRICS[manifest.metric],
            num_partitions=model.nlist,
            num_sub_vectors=model.m,
            num_bits=4,
            ivf_centroids=turned(model, model.coarse).astype(value),
            pq_codebook=words_of_rows(model).astype(value),
        )
        np.save(part / ROTATION, model.rotation)


def _value(reader: IndexReader) -> Any:
    """Type of the elements of vectors, which centroids and codewords share."""
    return pa.float16() if reader.manifest.dense == "f16" else pa.float32()


def _schema(reader: IndexReader) -> Any:
    key = pa.string() if reader.manifest.ids == "str" else pa.int64()
    return pa.schema([("id", key), ("vector", pa.list_(_value(reader), len(reader.model.rotation)))])


def _batches(reader: IndexReader) -> Iterator[Any]:
    schema = _schema(reader)
    key, vector = schema.field("id").type, schema.field("vector").type
    for chunk in LiveRows(reader).chunks():
        rows = turned(reader.model, reader.dense_rows(chunk.positions)).astype(vector.value_type.to_pandas_dtype())
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), vector.list_size)
        yield pa.record_batch([pa.array(reader.ids_of(chunk.positions).tolist(), key), vectors], schema=schema)
