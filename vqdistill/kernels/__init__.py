"""The one fast path per operation on codes, the engine that searches them, and the CPU level that serves both.

Training kernels (Numba) are imported from `vqdistill.kernels.jit`, so that opening and searching do not load Numba.
"""

from vqdistill._native import (
    Engine,
    available_levels,
    candidate_count,
    choose_results,
    cpu_level,
    merge_candidates,
    pack_codes,
    scan_order,
    take_integers,
    unpack_codes,
)

__all__ = [
    "Engine",
    "available_levels",
    "candidate_count",
    "choose_results",
    "cpu_level",
    "merge_candidates",
    "pack_codes",
    "scan_order",
    "take_integers",
    "unpack_codes",
]
