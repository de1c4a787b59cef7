"""Tables of docs/BENCH.md from stored reports: queries a second of each system at each recall.

    vqdistill report runs -o bench/results/bench/debian.json
    python bench/report_table.py debian pypi200k-int8
    python bench/report_table.py debian pypi200k-int8 --write docs/BENCH.md

A report is bench/results/bench/<name>.json, its place in the document between two lines with its name.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from measuring import RESULTS, markdown, with_block


def table(report: dict[str, Any]) -> str:
    """Return the table of a report of one dataset; whatever there is less of, systems or recalls, has the columns."""
    (dataset,) = report["datasets"]
    best = {(row["budget"], row["target"]): row["entries"] for row in dataset["best"]}
    names = {entry["system"]: entry["reference"] for entries in best.values() for entry in entries}
    speeds = {key: {entry["system"]: entry["queries_per_s"] for entry in entries} for key, entries in best.items()}
    order = sorted(names, key=lambda name: -sum(speed.get(name, 0.0) for speed in speeds.values()))
    shown = [f"{name} (all in memory)" if names[name] else name for name in order]
    wanted = [f"{budget.replace('B/vec', ' B')}, {target:.2f}" for budget, target in best]
    cells = [[f"{speed[name]:,.0f}" if name in speed else "-" for speed in speeds.values()] for name in order]
    if len(order) > len(wanted):
        return markdown(["system", *wanted], [[name, *row] for name, row in zip(shown, cells, strict=True)])
    columns = zip(*cells, strict=True)
    return markdown(["budget, recall", *shown], [[name, *row] for name, row in zip(wanted, columns, strict=True)])


def main() -> None:
    """Print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="of stored reports")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into a document")
    options = parser.parse_args()
    for name in options.names:
        found = table(json.loads((options.results / "bench" / f"{name}.json").read_text(encoding="utf-8")))
        if options.write is None:
            print(found, end="\n\n")
        else:
            text = options.write.read_text(encoding="utf-8")
            options.write.write_text(with_block(text, f"bench/report_table.py {name}", found), encoding="utf-8")


if __name__ == "__main__":
    main()
