"""An index as a directory of ScaNN: our lists, codebooks, codes and vectors, nothing encoded again."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from scann.partitioning import partitioner_pb2
from scann.proto import centers_pb2, scann_pb2
from scann.scann_ops import scann_assets_pb2
from scann.scann_ops.py import scann_ops_pybind

from vqdistill.config import KSUB
from vqdistill.index.reader import IndexReader
from vqdistill.interchange.rows import LiveRows, require_product, turned, words_of_rows
from vqdistill.interchange.whole import whole_directory
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.types import Metric

ROTATION = "rotation.npy"
"""File with what queries are multiplied with."""
_K = 10
_REORDERED = 100
"""Candidates that vectors verify where a search says nothing else."""
_ASSETS = {
    "AH_CENTERS": "ah_codebook.pb",
    "PARTITIONER": "serialized_partitioner.pb",
    "TOKENIZATION_NPY": "datapoint_to_token.npy",
    "AH_DATASET_NPY": "hashed_dataset.npy",
    "DATASET_NPY": "dataset.npy",
}


def write_scann(reader: IndexReader, out: Path) -> None:
    """Write a directory for `load_searcher`, which knows the ids of the rows, and the rotation.

    Vectors are turned as codes are: a search asks for `rotation @ query`. Lists are visited by `coarse`.

    Raises
    ------
    InvalidInput
        If ScaNN has no words for something, or `out` exists.
    VqdistillError
        If the disk refuses.
    """
    require_product(reader, "ScaNN", "verifies with vectors")
    model, rows = reader.model, LiveRows(reader)
    with whole_directory(out) as part:
        ids = _write_rows(reader, rows, part)
        (part / _ASSETS["AH_CENTERS"]).write_bytes(_codebooks(model).SerializeToString())
        (part / _ASSETS["PARTITIONER"]).write_bytes(_partitioner(model).SerializeToString())
        (part / "scann_config.pb").write_bytes(_config(reader, rows.n).SerializeToString())
        (part / "scann_docids.pkl").write_bytes(pickle.dumps(ids))
        assets = scann_assets_pb2.ScannAssets()
        for kind, name in _ASSETS.items():
            assets.assets.add(asset_type=scann_assets_pb2.ScannAsset.AssetType.Value(kind), asset_path=name)
        (part / "scann_assets.pbtxt").write_text(text_format.MessageToString(assets), encoding="utf-8")
        np.save(part / ROTATION, model.rotation)


def _write_rows(reader: IndexReader, rows: LiveRows, part: Path) -> list[Any]:
    """Write lists, codes and vectors in the order of the lists, and return the ids."""
    model = reader.model
    shapes = {
        "TOKENIZATION_NPY": ((rows.n,), np.int32),
        "AH_DATASET_NPY": ((rows.n, model.m), np.uint8),
        "DATASET_NPY": ((rows.n, len(model.rotation)), np.float32),
    }
    files: dict[str, Any] = {
        kind: np.lib.format.open_memmap(part / _ASSETS[kind], mode="w+", dtype=dtype, shape=shape)
        for kind, (shape, dtype) in shapes.items()
    }
    ids: list[Any] = []
    for chunk in rows.chunks():
        place = slice(len(ids), len(ids) + len(chunk.positions))
        files["TOKENIZATION_NPY"][place] = chunk.list
        files["AH_DATASET_NPY"][place] = chunk.codes
        files["DATASET_NPY"][place] = turned(model, reader.dense_rows(chunk.positions))
        ids += reader.ids_of(chunk.positions).tolist()
    for file in files.values():
        file.flush()
    return ids


def _codebooks(model: IvfPqModel) -> Any:
    books = centers_pb2.CentersForAllSubspaces(quantization_scheme="PRODUCT")
    for words in words_of_rows(model):
        centers = books.subspace_centers.add()
        for word in words:
            centers.center.add(feature_type="FLOAT", feature_value_float=word.tolist())
    return books


def _partitioner(model: IvfPqModel) -> Any:
    partitioner = partitioner_pb2.SerializedPartitioner(n_tokens=model.nlist)
    tree = partitioner.kmeans.kmeans_tree
    tree.learned_spilling_type = "NO_SPILLING"
    tree.root.leaf_id, tree.root.learned_spilling_threshold = -1, np.nan
    for at, center in enumerate(turned(model, model.coarse)):
        tree.root.centers.add(dimension=center.tolist())
        tree.root.children.add(leaf_id=at, learned_spilling_threshold=np.nan)
    return partitioner


def _config(reader: IndexReader, n: int) -> Any:
    """What the builder of ScaNN would say of an index of this shape."""
    model, metric = reader.model, "squared_l2" if reader.manifest.metric is Metric.L2 else "dot_product"
    shape = np.zeros((KSUB, len(model.rotation)), np.float32)
    builder = scann_ops_pybind.builder(shape, _K, metric)
    builder = builder.tree(model.nlist, min(model.nlist, reader.manifest.search.nprobe), training_sample_size=n)
    builder = builder.score_ah(model.dsub, hash_type="lut16", residual_quantization=model.residual)
    config = scann_pb2.ScannConfig()
    text_format.Parse(builder.reorder(min(n, _REORDERED)).create_config(), config)
    return config
