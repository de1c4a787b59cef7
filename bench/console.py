"""The console of a server over the index of a dataset, used in a headless browser; screenshots on request.

    python bench/console.py data/debian-sample.h5 [FOLDER]

Needs node, playwright-core and axe-core below NODE_MODULES, and chromium; `make console-check` installs the former.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

from measuring import run
from serving import Server


def main() -> None:
    """Compile, serve, and use the console."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("folder", nargs="?", help="where screenshots go")
    options = parser.parse_args()
    script = Path(__file__).with_name("check_console.mjs")
    with tempfile.TemporaryDirectory(prefix="vqdistill-console-") as place:
        index = Path(place) / "sample.vqd"
        run("compile", str(options.dataset), "-o", str(index), "--metric", "cosine", "--ram", "16B/vec")
        with Server(index) as server:
            pictures = [] if options.folder is None else [options.folder]
            raise SystemExit(subprocess.run(["node", script, server.url, "sample", "0", *pictures]).returncode)


if __name__ == "__main__":
    main()
