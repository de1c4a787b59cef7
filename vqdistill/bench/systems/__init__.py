"""The systems that are compared: one module each, loaded only where its library is installed."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from vqdistill.bench.systems.base import System
from vqdistill.errors import InvalidInput, MissingDependency


@dataclass(frozen=True)
class Entry:
    """What is known of a system without its library."""

    name: str
    module: str
    """below `vqdistill.bench.systems`"""
    packages: tuple[str, ...] = ()
    """distributions, any one of which provides it; () = ours"""
    install: str = ""
    """line that installs it"""
    reference: bool = False
    """whether it has no budget: it keeps what it likes"""
    note: str = ""

    @property
    def available(self) -> bool:
        """Whether it is installed."""
        return not self.packages or self.version is not None

    @property
    def version(self) -> str | None:
        """Name and version of the distribution that provides it; None if none does."""
        for package in self.packages or ("vqdistill",):
            try:
                return f"{package} {version(package)}"
            except PackageNotFoundError:
                continue
        return None


def _faiss(name: str, note: str) -> Entry:
    return Entry(f"faiss-{name}", "faiss_systems", ("faiss-cpu", "faiss-gpu"), "pip install faiss-cpu", note=note)


SYSTEMS = (
    Entry("vqdistill", "ours", note="codes distilled from learn queries"),
    Entry("vqdistill-undistilled", "ours", note="the undistilled start: IVF, OPQ, 4-bit product codes"),
    _faiss("pq", "PQ fast-scan of all codes"),
    _faiss("ivfpq", "IVF, PQ fast-scan"),
    _faiss("ivfpq-residual", "IVF, PQ fast-scan of residuals"),
    _faiss("ivfopq", "OPQ rotation, IVF, PQ fast-scan"),
    _faiss("ivfpq-half", "IVF, PQ fast-scan of codes half as long as fit"),
    _faiss("ivfopq-half", "OPQ rotation, IVF, PQ fast-scan of codes half as long as fit"),
    _faiss("ivfrabitq", "IVF, RaBitQ of 1 bit a dimension"),
    _faiss("lsq", "local search quantizer, fast-scan of all codes"),
    _faiss("rq", "residual quantizer, fast-scan of all codes"),
    _faiss("refine-mmap", "IVF, PQ fast-scan and IndexRefine of float16 rows, in one mapped file"),
    Entry("scann", "scann_system", ("scann-core", "scann"), "pip install scann-core", note="tree, AH, 4-bit"),
    Entry("scann-soar", "scann_system", ("scann-core", "scann"), "pip install scann-core", note="tree, AH, SOAR"),
    Entry("rabitqlib", "rabitq_system", ("rabitqlib",), "pip install rabitqlib", note="IVF-RaBitQ of 1 to 4 bits"),
    Entry("turbovec", "turbovec_system", ("turbovec",), "pip install turbovec", note="TurboQuant of 2 or 4 bits"),
    Entry("diskann", "diskann_system", ("diskannpy-rust",), "pip install diskannpy-rust", note="graph on disk, PQ"),
    Entry("lancedb-ivfpq", "lance_system", ("lancedb",), "pip install lancedb", note="IVF_PQ with refine"),
    Entry("lancedb-ivfrq", "lance_system", ("lancedb",), "pip install lancedb", note="IVF_RQ with refine"),
    Entry("svs", "svs_system", ("scalable-vs",), "pip install scalable-vs", True, "Vamana, LVQ 4x8 in memory"),
    Entry("autofaiss", "autofaiss_system", ("autofaiss",), "pip install autofaiss  # needs numpy<2"),
    Entry("hnswlib", "hnswlib_system", ("hnswlib",), "pip install hnswlib", True, "HNSW, float32 rows in memory"),
    Entry("usearch", "usearch_system", ("usearch",), "pip install usearch", True, "HNSW, float16 rows in memory"),
)


def entry(name: str) -> Entry:
    """Return the entry of a system.

    Raises
    ------
    InvalidInput
        If there is none of that name.
    """
    for candidate in SYSTEMS:
        if candidate.name == name:
            return candidate
    raise InvalidInput(f"systems must be among {', '.join(e.name for e in SYSTEMS)}, got {name!r}")


def require(name: str) -> Entry:
    """Return the entry of a system that is installed, without loading it.

    Raises
    ------
    InvalidInput
        If there is none of that name.
    MissingDependency
        If its library is not installed.
    """
    found = entry(name)
    if not found.available:
        raise MissingDependency(f"{name} needs {found.packages[0]}: {found.install}")
    return found


def load(name: str) -> System:
    """Load a system; raises as `require`."""
    module = importlib.import_module(f"vqdistill.bench.systems.{require(name).module}")
    made: System = module.make(name)
    return made
