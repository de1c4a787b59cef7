"""Whether certificates hold on test queries, and whether explanations of a loss add up and keep their promises.

    D=../shared/data; python bench/certificate.py $D/debian.h5 $D/pypi200k-int8.h5 --small data/debian-sample.h5

Each dataset is compiled at 24 bytes a vector for a recall of 0.95@10; that of --small at 8 bytes, which is too few.
Explained is the search of one half of its test queries, and the first suggestion is then followed on both halves. Each
result is stored as bench/results/certificate-<dataset>.json or certificate-explain-<dataset>.json and not measured
again while that file exists.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import h5py
from measuring import RESULTS, markdown, run, stored

RAM, SMALL_RAM = 24, 8
"""Bytes a vector."""
RECALL = "0.95@10"


def compiled(dataset: Path, directory: Path, *options: str) -> str:
    """Compile a dataset unless the directory has its index; return the path of the index."""
    index = directory / f"{dataset.stem}{''.join(options).replace('/', '-')}.vqd"
    if not index.exists():
        run("compile", str(dataset), "-o", str(index), *options)
    return str(index)


def certify(dataset: Path, directory: Path) -> dict[str, Any]:
    """Compile for a recall, then measure every rung and the default search on the test queries."""
    index = compiled(dataset, directory, "--ram", f"{RAM}B/vec", "--recall", RECALL)
    return {
        "dataset": dataset.stem,
        "certificate": run("eval", index, str(dataset), "--certificate")["output"],
        "eval": run("eval", index, str(dataset))["output"],
    }


def explain(dataset: Path, directory: Path) -> dict[str, Any]:
    """Explain one half of the test queries on an index that is too small, and follow the first suggestion on both."""
    index = compiled(dataset, directory, "--ram", f"{SMALL_RAM}B/vec")
    halves = [half_of(dataset, directory, half) for half in (0, 1)]
    explained = run("explain", index, str(halves[0]))["output"]
    setting = explained["suggestions"][0]["setting"]
    options = [text for name, value in setting.items() for text in (f"--{name}", str(value))]
    return {
        "dataset": dataset.stem,
        "explain": explained,
        "before": [run("eval", index, str(half))["output"]["recall_at_k"] for half in halves],
        "after": [run("eval", index, str(half), *options)["output"]["recall_at_k"] for half in halves],
    }


def half_of(dataset: Path, directory: Path, half: int) -> Path:
    """Write a copy of the dataset with every other test query."""
    path = directory / f"{dataset.stem}-half{half}.h5"
    shutil.copyfile(dataset, path)
    path.chmod(0o644)
    with h5py.File(path, "a") as file:
        for name in ("test", "neighbors", "distances", "test_labels"):
            if name in file:
                rows = file[name][half::2]
                del file[name]
                file[name] = rows
    return path


def certificate_lines(result: dict[str, Any]) -> str:
    """Return the table of one certificate and what it comes to."""
    checked, default = result["certificate"], result["eval"]
    rows = [
        [
            f"{rung['target']:g}",
            f"{rung['recall']:.4f}",
            f"{rung['low']:.4f}..{rung['high']:.4f}",
            f"{rung['test_recall']:.4f}",
            "yes" if rung["contained"] else "no",
            "yes" if rung["holds"] else "no",
            f"{rung['codes']:,.0f}",
            f"{rung['rows']:.0f}",
            f"{rung['p50_ms']:.2f}",
            f"{rung['p99_ms']:.2f}",
        ]
        for rung in checked["rungs"]
    ]
    header = ("target", "certified", "interval", "test", "inside", "holds", "codes", "rows", "p50 ms", "p99 ms")
    return (
        f"{result['dataset']}, {RAM} B a vector: certified on {checked['certified_on']:,} queries,"
        f" {checked['queries']:,} test queries\n\n{markdown(header, rows)}\n\n"
        f"inside the interval: {checked['contained']} of {checked['of']} (wanted 9); with the doubt of both samples:"
        f" {checked['hold']}; default search, for {RECALL}: {default['recall_at_k']:.4f}\n"
    )


def explained_lines(result: dict[str, Any]) -> str:
    """Return what one explanation comes to."""
    explained, first = result["explain"], result["explain"]["suggestions"][0]
    parts = {name: cause["deficit"] for name, cause in explained["causes"].items()}
    gained = [after - before for before, after in zip(result["before"], result["after"], strict=True)]
    kept = ", ".join(f"{gain:.4f} ({gain / first['gains']:.0%})" for gain in gained)
    told = " + ".join(f"{name} {value:.4f}" for name, value in parts.items())
    return (
        f"{result['dataset']}, {SMALL_RAM} B a vector: {told} = {sum(parts.values()):.4f}; measured deficit"
        f" {1 - result['before'][0]:.4f}\nfirst suggestion, {first['setting']}: promises {first['gains']:.4f}; gained"
        f" on the same queries and on others: {kept} (wanted 80%)\n"
    )


def main() -> None:
    """Measure what has no stored result yet, then print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", type=Path)
    parser.add_argument("--small", nargs="*", type=Path, default=[])
    parser.add_argument("--indexes", type=Path, help="where indexes are kept; default: nowhere")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as temporary:
        place = options.indexes or Path(temporary)
        for dataset in options.datasets:
            path = options.results / f"certificate-{dataset.stem}.json"
            print(certificate_lines(stored(path, lambda dataset=dataset: certify(dataset, place))))
        for dataset in options.small:
            path = options.results / f"certificate-explain-{dataset.stem}.json"
            print(explained_lines(stored(path, lambda dataset=dataset: explain(dataset, place))))


if __name__ == "__main__":
    main()
