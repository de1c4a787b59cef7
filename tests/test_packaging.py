"""What is packed, pinned and declared."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import vqdistill

ROOT = Path(__file__).parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {name: Version(version) for name, version in pairs}


def requirements() -> list[Requirement]:
    section = PROJECT[PROJECT.index("dependencies = [") : PROJECT.index("[project.scripts]")]
    return [Requirement(text) for text in re.findall(r'"([^"]+)"', section)]


def test_every_requirement_is_pinned_within_its_range() -> None:
    assert len(requirements()) >= 15
    for requirement in requirements():
        assert requirement.specifier.contains(pins()[requirement.name.lower()]), str(requirement)


def test_pins_are_exact_and_public() -> None:
    assert all(version.local is None for version in pins().values())
    assert pins()["torch"] == Version("2.13.0")


def test_versions_agree() -> None:
    assert f'version = "{vqdistill.__version__}"' in PROJECT


def test_builds_do_not_depend_on_the_machine() -> None:
    for path in [ROOT / "setup.py", ROOT / "Makefile", *(ROOT / "csrc").iterdir()]:
        assert "march=native" not in path.read_text(encoding="utf-8"), path.name


def test_a_source_distribution_holds_what_a_build_needs(tmp_path: Path) -> None:
    unwanted = shutil.ignore_patterns(".*", "*.h5", "*.so", "*.egg-info", "__pycache__", "*.vqd")
    copy = shutil.copytree(ROOT, tmp_path / "copy", ignore=unwanted)
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"LICENSE", "README.md", "pyproject.toml", "setup.py", "vqdistill/py.typed", "vqdistill/_native.pyi"}
    wanted |= {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir() if path.suffix in (".h", ".cpp")}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "vqdistill").rglob("*.py")}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "vqdistill").rglob("*.j2")}
    wanted |= {"vqdistill/server/console.html"}
    assert wanted <= packed


@pytest.mark.parametrize(
    "target",
    ["demo", "test", "lint", "format", "build", "sample", "bench-check", "page-check", "console-check", "clean"],
)
def test_every_make_target_exists(target: str) -> None:
    subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)
