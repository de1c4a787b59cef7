"""Compiles and runs the C++ tests beside this file under the sanitizers, where the compiler has them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vqdistill.kernels import available_levels

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
    sources = [source for source in sorted(CSRC.glob("*.cpp")) if not source.stem.startswith("py_")]
    compilers = [
        subprocess.Popen([COMPILER, *flags, "-c", source, "-o", folder / f"{source.stem}.o"]) for source in sources
    ]
    codes = [compiler.wait() for compiler in compilers]
    assert not any(codes)
    return flags, sorted(folder.glob("*.o"))


def output_of(objects, name, folder, *arguments):
    """Compile a program of this folder, run it, and return what it prints."""
    flags, built = objects
    program = folder / name
    compiled = run(COMPILER, *flags, HERE / f"{name}.cpp", *built, "-o", program)
    assert compiled.returncode == 0, compiled.stderr
    finished = run(program, *arguments)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize("name", sorted(path.stem for path in HERE.glob("test_*.cpp")))
def test_native(objects, name, tmp_path):
    output_of(objects, name, tmp_path)


@pytest.mark.parametrize("objects", ["address"], indirect=True)
def test_levels_agree_on_random_calls(objects, tmp_path):
    """A short run of `make fuzz`: its buffers end where their memory ends, so a kernel that reads beyond is seen."""
    summary = output_of(objects, "fuzz_kernels", tmp_path, 200_000)
    assert summary.startswith("no mismatch: 200")
    assert summary.endswith(f"levels {' '.join(available_levels())}\n")
