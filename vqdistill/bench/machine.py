"""Where and with what a run was measured, and how its process is held to it."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from vqdistill.kernels import cpu_level

_ONE_THREAD = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS"),
    *("TOKIO_WORKER_THREADS", "LANCE_CPU_THREADS", "LANCE_IO_THREADS"),
)
_QUIET = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "GLOG_minloglevel": "3",
    "RUST_LOG": "error",
    "LANCE_LOG": "error",
}
_OF_INTEREST = re.compile(
    r"vqdistill|numpy|numba|torch|faiss.*|scann.*|rabitqlib|turbovec|diskannpy.*|lancedb|pylance|scalable.vs|autofaiss"
    r"|hnswlib|usearch",
    re.IGNORECASE,
)


def environment(threads: int) -> dict[str, str]:
    """Return the environment of a process that may use so many threads."""
    return dict(os.environ) | dict.fromkeys(_ONE_THREAD, str(threads)) | _QUIET


def cores(text: str | None) -> list[int]:
    """Read "0,2-3"; None = all that this process may use."""
    allowed = sorted(os.sched_getaffinity(0))
    if text is None:
        return allowed
    found: list[int] = []
    for part in text.split(","):
        if not re.fullmatch(r"\d+(-\d+)?", part.strip()):
            return []
        first, _, last = part.strip().partition("-")
        found += range(int(first), int(last or first) + 1)
    return found if set(found) <= set(allowed) else []


def machine() -> dict[str, Any]:
    """Return processor, cores, memory, kernel and CPU level."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": pages,
        "kernel": platform.release(),
        "cpu_level": cpu_level(),
        "load": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of every library that a system may use."""
    found = {str(d.metadata["Name"]): d.version for d in distributions() if d.metadata["Name"]}
    kept = {name: version for name, version in found.items() if _OF_INTEREST.fullmatch(name)}
    return {"python": platform.python_version()} | dict(sorted(kept.items()))


def _processor() -> str:
    """Return the processor as Linux names it, with its numbers: virtual machines hide the rest of the name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
    known = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "model name" not in known:
        return platform.machine()
    return f"{known['model name']}, family {known.get('cpu family', '?')} model {known.get('model', '?')}"
