"""A framework that is missing is one sentence with the install line, and a store loads only what searching needs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys

import pytest

from vqdistill.errors import MissingDependency


@pytest.mark.parametrize(
    ("module", "library", "framework"),
    [
        ("langchain", "langchain_core", "LangChain"),
        ("llamaindex", "llama_index", "LlamaIndex"),
        ("haystack", "haystack", "Haystack"),
        ("sklearn", "sklearn", "scikit-learn"),
    ],
)
def test_a_missing_framework_is_named_with_its_install_line(
    monkeypatch: pytest.MonkeyPatch, module: str, library: str, framework: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"vqdistill.integrations.{module}", raising=False)
    with pytest.raises(MissingDependency) as caught:
        importlib.import_module(f"vqdistill.integrations.{module}")
    message = str(caught.value)
    assert message.startswith(f"the adapter to {framework} needs {library}")
    assert message.endswith(f": pip install 'vqdistill[{module}]'")


def test_a_store_loads_what_searching_needs() -> None:
    code = (
        "import sys, vqdistill.integrations.store, vqdistill.integrations.beir;"
        "print(sorted({name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "numba", "h5py", "sklearn", "scipy", "langchain_core", "llama_index", "haystack", "tqdm"}
    assert not heavy & set(ast.literal_eval(done.stdout))
