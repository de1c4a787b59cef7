"""The demo: compile and measure the sample dataset with the command line, then print one small table."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

RAM = "32B/vec"


def vqdistill(*arguments: str) -> str:
    """Show and run one command; its progress stays visible, its standard output is returned."""
    print("$ vqdistill", *arguments, flush=True)
    command = [sys.executable, "-m", "vqdistill", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Run the demo: dataset, index directory, further options of compile."""
    dataset, out = Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "build/demo.vqd")
    if out.exists():
        shutil.rmtree(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    vqdistill("compile", str(dataset), "-o", str(out), "--metric", "cosine", "--ram", RAM, *sys.argv[3:])
    measured = json.loads(vqdistill("eval", str(out), str(dataset), "-k", "10", "--json"))
    index = json.loads(vqdistill("inspect", str(out), "--json"))
    each, fixed = measured["ram_bytes_per_vector"], measured["ram_bytes_fixed"]
    reads = measured["dense_reads_per_query"]
    rows = {
        "bytes in memory": f"{index['resident_bytes']:,} ({each:g} a vector + {fixed:,} fixed)",
        "bytes on disk": f"{measured['disk_bytes']:,}",
        "recall@10, codes alone": f"{measured['recall_at_k_codes_only']:.3f}",
        "recall@10, verified": f"{measured['recall_at_k']:.3f} ({reads:.0f} dense reads a query)",
        "queries/s": f"{measured['queries_per_s']:,.0f}",
        "MRR@10, teacher": f"{measured['teacher_mrr_at_10']:.3f}",
        "MRR@10, index": f"{measured['mrr_at_10']:.3f}",
    }
    print()
    for name, value in rows.items():
        print(f"{name:<24} {value}")


if __name__ == "__main__":
    main()
