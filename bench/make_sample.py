"""Draw the small dataset that ships with the repository out of a large one in the ann-benchmarks layout.

Documents are those of the drawn test and learn queries, then random others; labels and exact neighbours are made anew
within the sample. The same seed gives the same rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import h5py
import numpy as np

DEPTH = 100


def draw(source: Path, docs: int, learn: int, test: int, seed: int) -> dict[str, Any]:
    """Return the arrays of the sample, by dataset name."""
    rng = np.random.default_rng(seed)
    with h5py.File(source) as file:
        arrays = {name: file[name][:] for name in ("train", "test", "test_labels", "learn_queries", "learn_labels")}
    picked_test = np.sort(rng.choice(len(arrays["test"]), test, replace=False))
    picked_learn = np.sort(rng.choice(len(arrays["learn_queries"]), learn, replace=False))
    labels = np.concatenate([arrays["test_labels"][picked_test], arrays["learn_labels"][picked_learn]])
    others = np.setdiff1d(np.arange(len(arrays["train"])), labels)
    filler = rng.choice(others, docs - len(np.unique(labels)), replace=False)
    rows = np.sort(np.concatenate([np.unique(labels), filler]))
    new_label = np.full(len(arrays["train"]), -1, np.int32)
    new_label[rows] = np.arange(docs, dtype=np.int32)
    out = {
        "train": arrays["train"][rows],
        "test": arrays["test"][picked_test],
        "test_labels": new_label[arrays["test_labels"][picked_test]],
        "learn_queries": arrays["learn_queries"][picked_learn],
        "learn_labels": new_label[arrays["learn_labels"][picked_learn]],
    }
    out["neighbors"], out["distances"] = exact_neighbours(out["train"], out["test"])
    return out


def exact_neighbours(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the DEPTH nearest rows of each query by cosine, and their distances 1 - cosine; ties by lower row."""
    documents, queries = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train.astype(float), test.astype(float))
    )
    distances = 1 - queries @ documents.T
    order = np.argsort(distances, axis=1, kind="stable")[:, :DEPTH]
    return order.astype(np.int32), np.take_along_axis(distances, order, axis=1).astype(np.float32)


def main() -> None:
    """Read the options, draw, and write one compressed HDF5 file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--docs", type=int, default=4400)
    parser.add_argument("--learn", type=int, default=2000)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    arrays = draw(options.source, options.docs, options.learn, options.test, options.seed)
    options.out.parent.mkdir(exist_ok=True)
    with h5py.File(options.source) as source, h5py.File(options.out, "w", libver="latest") as out:
        out.attrs["distance"] = "angular"
        for name in ("model", "source"):
            out.attrs[name] = source.attrs[name]
        out.attrs["note"] = f"{options.docs} of {len(source['train'])} documents; neighbours exact within this sample"
        for name, array in arrays.items():
            out.create_dataset(
                name, data=array, compression="gzip", compression_opts=9, shuffle=True, track_times=False
            )
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
