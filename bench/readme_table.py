"""Compile and measure datasets at several budgets; keep the raw figures, print the table of the README.

    python bench/readme_table.py ../shared/data/debian.h5 ../shared/data/pypi200k-int8.h5

Each run is stored as bench/results/<dataset>-<bytes>-<codebooks>.json and is not repeated while that file exists.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from measuring import RESULTS, every_list, run, stored


def measure(dataset: Path, ram: int, distilled: bool, threads: int) -> dict[str, Any]:
    """Compile one index, and evaluate it at its defaults and with every list visited."""
    with tempfile.TemporaryDirectory() as directory:
        index = f"{directory}/index.vqd"
        options = ["--metric", "cosine", "--ram", f"{ram}B/vec", "--threads", str(threads)]
        compiled = run("compile", str(dataset), "-o", index, *options, *([] if distilled else ["--no-distill"]))
        probed = run("eval", index, str(dataset), "-k", "10", "--refine", "100")
        exhaustive = every_list(index, dataset)
    return {
        "dataset": dataset.stem,
        "ram_bytes_per_vector": ram,
        "distilled": distilled,
        "compile": compiled,
        "eval": probed,
        "eval_all_lists": exhaustive,
    }


def row(result: dict[str, Any]) -> str:
    """Return one line of the table."""
    probed, exhaustive = result["eval"]["output"], result["eval_all_lists"]["output"]
    mrr = probed.get("mrr_at_10")
    cells = (
        result["dataset"],
        f"{result['ram_bytes_per_vector']}",
        "distilled" if result["distilled"] else "start",
        f"{probed['recall_at_k']:.3f}",
        f"{probed['recall_at_k_codes_only']:.3f}",
        f"{exhaustive['candidate_recall']:.3f}",
        "-" if mrr is None else f"{mrr:.3f}",
        f"{probed['codes_scanned_per_query']:,.0f}",
        f"{result['compile']['seconds']:.0f}",
        f"{result['compile']['peak_rss_bytes'] / 2**20:,.0f}",
    )
    return f"| {' | '.join(cells)} |"


HEADER = """\
| dataset | B/vector | codebooks | recall@10, 100 reads | recall@10, codes only | candidate recall, all lists | MRR@10 \
| codes scanned | compile s | peak MiB |
|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Measure what has no stored result yet, then print the table of all that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", type=Path)
    parser.add_argument("--ram", nargs="+", type=int, default=[16, 32], help="bytes a vector")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = []
    for dataset in options.datasets:
        for ram in options.ram:
            for distilled in (False, True):
                path = options.results / f"{dataset.stem}-{ram}-{'distilled' if distilled else 'start'}.json"
                result = stored(path, partial(measure, dataset, ram, distilled, options.threads))
                rows.append(row(result))
    print(HEADER, *rows, sep="\n")


if __name__ == "__main__":
    main()
