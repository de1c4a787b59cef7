"""The public names: complete, lazy, and nothing heavy behind a bare import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vqdistill


@pytest.mark.parametrize("name", vqdistill.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(vqdistill, name) is getattr(vqdistill, name)
    assert name in dir(vqdistill)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        _ = vqdistill.colour


def test_type_checkers_see_every_lazy_name() -> None:
    tree = ast.parse(Path(vqdistill.__file__).read_text(encoding="utf-8"))
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in ast.walk(typed) if isinstance(node, ast.ImportFrom) for alias in node.names}
    seen |= {node.id for node in ast.walk(typed) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assert set(vqdistill.__all__) - {"__version__", "VqdistillError"} <= seen


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, vqdistill; print(sorted({m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "torch", "numba", "faiss", "sklearn", "h5py", "click", "tqdm"}
    assert not heavy & set(ast.literal_eval(done.stdout))
