"""What a query costs, in ns of one core: constants, so that plans and certificates depend on no machine's mood."""

from __future__ import annotations

NS_PER_QUERY, NS_PER_MULTIPLICATION = 20_000.0, 0.04
"""Of a query of a batch, and of routing and look-up tables."""
NS_PER_LIST, NS_PER_CODE_BYTE = 230.0, 0.035
"""Of a list that is visited, and of the codes scanned there."""
NS_OF_READ, NS_PER_READ_BYTE = 340.0, 0.064
"""Of a row that is read from the page cache and scored."""
# bench/query_costs.py fits them: 160 ways to search 8 indexes of pypi200k, of 128 and 512 lists and 12 and 24 bytes a
# vector, on a virtual machine (Ice Lake, 2.8 GHz), four of five within 18 % and all within 36 %. On a desktop (Zen 4)
# a row that is read costs a third, and all else about the same.
_ROW_BYTES = {"f32": (4, 0), "f16": (2, 0), "bf16": (2, 0), "i8": (1, 4)}
"""Bytes of a dense row: for each dimension, and beyond them."""


def dense_bytes(d: int, dense: str) -> int:
    """Return the bytes of a dense row; 0 for "none"."""
    each, more = _ROW_BYTES.get(dense, (0, 0))
    return each * d + more


def read_ns(d: int, dense: str) -> float:
    """Return the work of reading and scoring one row; 0 without dense rows."""
    return 0.0 if dense == "none" else NS_OF_READ + NS_PER_READ_BYTE * dense_bytes(d, dense)


def search_ns(d: int, m: int, dense: str, *, lists: float, codes: float, reads: float) -> float:
    """Return the work of a query of a batch beyond routing and tables, which no setting changes.

    Parameters
    ----------
    m : codes of a row, of half a byte
    lists, codes, reads : lists visited, rows whose codes are scanned, and rows of `dense` precision that are read
    """
    return NS_PER_LIST * lists + NS_PER_CODE_BYTE * codes * m / 2 + reads * read_ns(d, dense)
