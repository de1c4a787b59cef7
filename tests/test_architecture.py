"""The floors of the house: imports go down only, without cycles, and each third-party library has its doors.

Sources are read with `ast`; nothing is imported, so this test also holds where an optional library is missing.
"""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vqdistill"

FLOORS = {
    "errors": 0,
    "types": 0,
    "config": 0,
    "progress": 0,
    "_native": 1,
    "kernels": 1,
    "objects": 1,
    "data": 2,
    "model": 2,
    "documents": 2,
    "distill": 3,
    "index": 3,
    "searcher": 4,
    "evaluate": 5,
    "compiler": 6,
    "wire": 1,
    "cluster": 1,
    "shards": 7,
    "client": 7,
    "server": 7,
    "bench": 7,
    "interchange": 7,
    "integrations": 7,
    "cli": 8,
    "__main__": 9,
    "": 10,  # vqdistill/__init__.py: only names, loaded when they are used
}

SAME_FLOOR = {
    ("types", "errors"),
    ("config", "types"),
    ("config", "errors"),
    ("kernels", "_native"),
    ("__main__", "cli"),
}
"""Imports between different rooms of one floor."""

ABSENT = {
    "index": {"data", "distill", "documents"},
    "documents": {"data", "model"},
    "distill": {"index"},
    "searcher": {"data", "distill", "kernels", "documents"},
    "compiler.plan": {"data", "distill", "model", "kernels"},
    "compiler.cost": {"data", "distill", "model", "kernels"},
    "compiler.passes": {"data", "distill", "model", "kernels"},
    "compiler.capacity": {"data", "distill", "model", "kernels"},
    "compiler.candidates": {"data", "distill", "model", "kernels"},
    "client": {"index", "searcher", "model", "data", "kernels"},
    "server": {"data", "distill", "compiler", "kernels"},
    "evaluate.work": {"data", "model", "index", "searcher", "compiler", "kernels"},
    "evaluate.metrics": {"data", "model", "index", "searcher", "compiler", "kernels"},
}
"""Rooms that lie below but that these must not know, although the floors would allow it."""

DOORS = {
    "_native": {"kernels", "index.reader", "searcher", "server.pool"},
    "numba": {"kernels.jit", "kernels.additive", "kernels.ranking", "kernels.threads", "bench.verify"},
    "llvmlite": {"bench.verify"},
    "torch": {"distill"},
    "h5py": {"data", "bench"},
    "lance": {"data.lance", "interchange.lance_dataset"},
    "ray": {"cluster", "shards.ray_engine", "server.ray_serve"},
    "fsspec": {"objects.store"},
    "pyarrow": {"data", "interchange.lance_dataset", "bench.systems.lance_system"},
    "threadpoolctl": {"data.exact", "kernels.threads"},
    "click": {"cli", "bench.commands"},
    "scipy": {"bench.scoring", "integrations.sklearn"},
    "sklearn": {"integrations.sklearn"},
    "langchain_core": {"integrations.langchain", "interchange.faiss_files"},
    "llama_index": {"integrations.llamaindex"},
    "haystack": {"integrations.haystack"},
    "sqlite3": {"documents.store"},
    "ir_measures": {"bench.scoring"},
    "plotly": {"bench.plots", "bench.report"},
    "jinja2": {"bench.report"},
    "markupsafe": {"bench.report"},
    "pooch": {"bench.fetch"},
    "faiss": {
        "interchange",
        "bench.systems.faiss_recipes",
        "bench.systems.faiss_systems",
        "bench.systems.autofaiss_system",
    },
    "autofaiss": {"bench.systems.autofaiss_system"},
    "google": {"interchange.scann_assets"},
    "scann": {"interchange.scann_assets", "bench.systems.scann_system"},
    "rabitqlib": {"bench.systems.rabitq_system"},
    "turbovec": {"bench.systems.turbovec_system"},
    "diskannpy": {"bench.systems.diskann_system"},
    "lancedb": {"bench.systems.lance_system"},
    "svs": {"bench.systems.svs_system"},
    "hnswlib": {"bench.systems.hnswlib_system"},
    "usearch": {"bench.systems.usearch_system"},
    "langchain_community": {"interchange.faiss_files"},
    "safetensors": {"interchange.arrays"},
    "tqdm": {"progress"},
    "anyio": {"server.bodies"},
    "fastapi": {"server"},
    "starlette": {"server"},
    "uvicorn": {"server.run"},
    "pydantic": {"server"},
    "pydantic_core": {"server"},
    "prometheus_client": {"server.metrics"},
    "msgpack": {"wire"},
    "httpx": {"client"},
    "numpy": {
        "shards.exact",
        "types",
        "kernels",
        "data",
        "model",
        "distill",
        "index",
        "searcher",
        "evaluate",
        "cli",
        "bench",
    }
    | {"documents", "integrations", "interchange", "wire", "client", "server"}
    | {"compiler.adapted", "compiler.build", "compiler.index_teacher", "compiler.proof", "compiler.store"}
    | {"compiler.supervision", "compiler.trained", "compiler.forecast", "compiler.prediction", "compiler.sample"}
    | {"compiler.scaling", "compiler.trials"},
}
"""The modules or packages through which each library comes in; a library that is not listed does not come in."""

LATE = {
    ("data", "lance"),
    ("data", "pyarrow"),
    ("objects.store", "fsspec"),
    ("index.model_segments", "vqdistill.model.ivfpq"),
    ("index.model_segments", "vqdistill.model.learned"),
    ("index.model_segments", "vqdistill.model.space"),
    ("searcher", "vqdistill.index.update"),
    ("cli", "vqdistill.cli.commands"),
    ("cli", "vqdistill.index.gc"),
    ("cli", "vqdistill.index.join"),
    ("cli", "vqdistill.index.update"),
    ("cli", "vqdistill.data.sources"),
    ("cli", "vqdistill.evaluate.certificate"),
    ("cli", "vqdistill.evaluate.diagnose"),
    ("cli", "vqdistill.evaluate.explain"),
    ("cli", "vqdistill.evaluate.run"),
    ("cli", "vqdistill.compiler.decide"),
    ("cli.paper", "vqdistill.compiler.capacity"),
    ("cli.paper", "vqdistill.compiler.machine"),
    ("cli.build", "vqdistill.shards.ray_engine"),
    ("shards.ray_engine", "vqdistill.shards.training"),
    ("shards.ray_engine", "vqdistill.shards.publishing"),
    ("cli.shard", "vqdistill.shards.planning"),
    ("cli.shard", "vqdistill.shards.training"),
    ("cli.shard", "vqdistill.shards.parts"),
    ("cli.shard", "vqdistill.shards.publishing"),
    ("cli.serve", "vqdistill.server.config"),
    ("cli.serve", "vqdistill.server.run"),
    ("cli.serve", "vqdistill.server.ray_serve"),
    ("cli.shard", "vqdistill.index.regather"),
    ("compiler.decide", "vqdistill.compiler.chosen"),
    ("evaluate.memory", "vqdistill.searcher"),
    ("bench.systems.ours", "vqdistill.compiler.build"),
    ("cli", "vqdistill.interchange.exporting"),
    ("cli", "vqdistill.interchange.from_faiss"),
    ("interchange.exporting", "vqdistill.interchange.agreement"),
    ("interchange.exporting", "vqdistill.interchange.faiss_files"),
    ("interchange.exporting", "vqdistill.interchange.faiss_index"),
    ("interchange.exporting", "vqdistill.interchange.lance_dataset"),
    ("interchange.exporting", "vqdistill.interchange.scann_assets"),
    ("interchange.faiss_files", "langchain_community"),
    ("interchange.faiss_files", "langchain_core"),
    ("interchange.arrays", "safetensors"),
    ("integrations", "vqdistill.compiler.build"),
    ("integrations", "vqdistill.index.update"),
}
"""Imports inside functions: optional libraries, and what would bring heavy ones into every search."""


@dataclass(frozen=True)
class Import:
    """One import statement."""

    module: str
    """Importing module, without the package name: "index.reader"."""
    name: str
    """Imported module, in full: "vqdistill.index.spec", "numpy"."""
    late: bool
    """Stands inside a function."""
    typing: bool
    """Stands under `if TYPE_CHECKING`."""


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def imports_of(module: str, tree: ast.AST, late: bool = False, typing: bool = False) -> list[Import]:
    found = []
    for node in ast.iter_child_nodes(tree):
        inner = late or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        hints = typing or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        if isinstance(node, ast.Import):
            found += [Import(module, alias.name, inner, hints) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            found += [Import(module, target(node.module or "", alias.name), inner, hints) for alias in node.names]
        else:
            found += imports_of(module, node, inner, hints)
    return found


def target(module: str, name: str) -> str:
    """Resolve `from module import name`, where `name` may itself be a module of ours."""
    full = f"{module}.{name}"
    ours = full.removeprefix("vqdistill.")
    return full if module.startswith("vqdistill") and (ours in MODULES or ours == "_native") else module


IMPORTS = [item for name, tree in MODULES.items() for item in imports_of(name, tree)]
OURS = [
    Import(item.module, item.name.removeprefix("vqdistill").removeprefix("."), item.late, item.typing)
    for item in IMPORTS
    if item.name.split(".")[0] == "vqdistill"
]


def room(module: str) -> str:
    return module.split(".")[0]


def within(module: str, places: set[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def test_every_module_has_a_floor() -> None:
    assert {room(module) for module in MODULES} <= FLOORS.keys()


def test_imports_go_down_only() -> None:
    for item in OURS:
        source, wanted = room(item.module), room(item.name)
        if source in ("", wanted) or (source, wanted) in SAME_FLOOR or item.name == "":
            continue
        assert FLOORS[wanted] < FLOORS[source], f"{item.module} must not import {item.name}"


def test_only_the_command_line_uses_the_public_names() -> None:
    assert {room(item.module) for item in OURS if item.name == ""} <= {"cli"}


def test_what_must_not_be_known_is_not_imported() -> None:
    for place, strangers in ABSENT.items():
        for item in OURS:
            if within(item.module, {place}):
                assert room(item.name) not in strangers, f"{item.module} must not know {item.name}"


def test_there_is_no_cycle() -> None:
    graph = {module: {item.name for item in OURS if item.module == module and not item.typing} for module in MODULES}
    for module in graph:  # a package's __init__ runs before its modules, but only counts where it imports something
        graph[module].discard(module)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import cycle: {' -> '.join((*path, module))}"
        if module not in done:
            for below in sorted(graph.get(module, ())):
                visit(below, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("library", sorted(DOORS))
def test_each_library_comes_in_by_its_doors(library: str) -> None:
    for item in IMPORTS:
        if item.name == f"vqdistill.{library}" or item.name.split(".")[0] == library:
            assert within(item.module, DOORS[library]), f"{item.module} must not import {library}"


def test_no_other_library_comes_in() -> None:
    for item in IMPORTS:
        top = item.name.split(".")[0]
        assert top in sys.stdlib_module_names or top == "vqdistill" or top in DOORS, f"{item.module} imports {top}"


def test_imports_inside_functions_are_on_the_short_list() -> None:
    for item in IMPORTS:
        if item.late:
            top = item.name.split(".")[0]
            allowed = any(within(item.module, {place}) and name in (top, item.name) for place, name in LATE)
            assert allowed, f"{item.module} imports {item.name} inside a function"


def test_the_test_sees_a_breach() -> None:
    tree = ast.parse("def f():\n    import torch\nif TYPE_CHECKING:\n    from vqdistill.index import spec\n")
    late, typed = imports_of("model.kmeans", tree)
    assert (late.name, late.late) == ("torch", True)
    assert (typed.name, typed.typing) == ("vqdistill.index.spec", True)
    assert not within("model.kmeans", DOORS["torch"])


def test_only_the_binding_files_know_pybind11_and_python() -> None:
    sources = [path for path in (ROOT / "csrc").iterdir() if path.suffix in (".h", ".cpp")]
    assert sources
    for path in sources:
        if not path.name.startswith("py_"):
            assert not re.search(r"#include\s*[<\"](pybind11|Python\.h)", path.read_text(encoding="utf-8")), path.name


def test_cpp_opens_and_parses_no_file() -> None:
    for path in (ROOT / "csrc").iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(fopen|ifstream|::open)\b", text), path.name
        assert path.name == "io_uring.cpp" or not re.search(r"\bmmap\b", text), path.name


def test_io_uring_maps_its_rings_only() -> None:
    text = (ROOT / "csrc" / "io_uring.cpp").read_text(encoding="utf-8")
    assert len(re.findall(r"\bmmap\(", text)) == 1
    assert re.findall(r"\bmap\([^;]*?, (\w+)\)", text) == ["IORING_OFF_SQ_RING", "IORING_OFF_SQES"]
