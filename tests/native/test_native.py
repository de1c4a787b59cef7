"""Compiles and runs the C++ tests beside this file under the sanitizers, where the compiler has them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{CSRC}"]
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


def runs_here(flags: list[str], folder: Path) -> bool:
    probe = folder / "probe.cpp"
    probe.write_text("int main() {}\n")
    program = folder / "probe"
    return run(COMPILER, *flags, probe, "-o", program).returncode == 0 and run(program).returncode == 0


@pytest.fixture(scope="module", params=SANITIZERS)
def objects(request, tmp_path_factory):
    """Return flags and object files of csrc/ but the bindings; plain ones instead of a sanitizer that is missing."""
    folder = tmp_path_factory.mktemp(request.param)
    flags = [*FLAGS, *SANITIZERS[request.param]]
    if not runs_here(flags, folder):
        flags = FLAGS
    sources = [source for source in sorted(CSRC.glob("*.cpp")) if source.stem != "bindings"]
    compilers = [
        subprocess.Popen([COMPILER, *flags, "-c", source, "-o", folder / f"{source.stem}.o"]) for source in sources
    ]
    codes = [compiler.wait() for compiler in compilers]
    assert not any(codes)
    return flags, sorted(folder.glob("*.o"))


@pytest.mark.parametrize("name", sorted(path.stem for path in HERE.glob("test_*.cpp")))
def test_native(objects, name, tmp_path):
    flags, built = objects
    program = tmp_path / name
    compiled = run(COMPILER, *flags, HERE / f"{name}.cpp", *built, "-o", program)
    assert compiled.returncode == 0, compiled.stderr
    finished = run(program)
    assert finished.returncode == 0, finished.stderr
