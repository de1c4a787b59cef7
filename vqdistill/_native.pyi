"""Search engine and kernels in C++: the written contract of csrc/.

Arrays must be C-contiguous and aligned, of exactly the dtype named; nothing is converted. A wrong type or dtype raises
TypeError, a wrong shape or value ValueError; the sentence names the argument, what was got and what was wanted.

The import raises ImportError if the environment variable VQDISTILL_CPU names a CPU level that is unknown or cannot run.
"""

from collections.abc import Sequence
from mmap import mmap
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt

_F32 = npt.NDArray[np.float32]
_U8 = npt.NDArray[np.uint8]
_I64 = npt.NDArray[np.int64]
_Table = npt.NDArray[np.float32] | npt.NDArray[np.float16] | npt.NDArray[np.uint8]
"""A matrix of float32, of float16, or of bytes: along the last axis a float32 scale, then bytes -127..127."""
_Allow = tuple[npt.NDArray[np.uint32], _I64]
_Adapter = tuple[_Table, _F32, _Table, int, bool]

def cpu_level() -> str:
    """Return the CPU level in use: the best available one, or what VQDISTILL_CPU names."""

def available_levels() -> list[str]:
    """Return the levels that this machine can run, slowest first: scalar, avx2, avx512; or scalar, neon."""

def io_uring_available() -> bool:
    """Return whether this system lets us read by io_uring: Linux 5.6 or later, and nothing that denies it."""

def pack_codes(codes: _U8) -> _U8:
    """Interleave codes in blocks of 32 rows, as the scan reads them.

    Parameters
    ----------
    codes : (n, m) uint8, one code below 16 a byte; m even, 2..256

    Returns
    -------
    (ceil(n / 32), m // 2, 32) uint8: byte [b, p, r] = codes[32b + r, 2p] | codes[32b + r, 2p + 1] << 4; padding is 0

    Raises
    ------
    TypeError, ValueError
        As above, or if a code is 16 or more.
    """

def unpack_codes(packed: _U8, n: int) -> _U8:
    """Undo `pack_codes`, and `scan_order`: the first `n` rows of packed codes as (n, m) uint8."""

def scan_order(packed: _U8) -> _U8:
    """Bring packed codes into the order that the scan of this CPU reads fastest, in place.

    Parameters
    ----------
    packed : (nblocks, m // 2, 32) uint8, as `pack_codes` returns them, writable

    Returns
    -------
    (nblocks, m // 8, 32, 4) uint8: byte [b, g, r, i] = packed[b, 4g + i, r], in the same memory, if the level in use
    scans such quads and m is a multiple of 8; else `packed`, as it was

    Raises
    ------
    TypeError, ValueError
        As above.
    """

def scan_pq4(
    level: str,
    packed: _U8,
    tables: _U8,
    thresholds: Sequence[int],
    *,
    allow: npt.NDArray[np.uint32] | None = None,
    places: int,
) -> list[Any]:
    """Scan for 1 to 4 queries at once for rows whose table entries add up to a query's threshold; for tests.

    Parameters
    ----------
    level : one of `available_levels()`
    packed : (nblocks, m // 2, 32) uint8, or in quads (nblocks, m // 8, 32, 4) where the level scans them
    tables : (nq, m, 16) uint8 with tables[i, 2p].max() + tables[i, 2p + 1].max() <= 255
    thresholds : nq integers in 0..32641
    allow : (nblocks,) uint32, bit r = row r of the block may be found; None = all rows
    places : hits that a query has room for, at least 32

    Returns
    -------
    for each query its rows and sums, (h,) int64 each, in order; and at the end the number of blocks scanned
    """

def quantize_tables(level: str, lut: _F32) -> tuple[_U8, float, float]:
    """Return tables (m, 16) uint8, bias = sum of lut[j].min(), and step with lut ~ min + step * table; for tests."""

def pq_tables(level: str, rotated: _F32, words_t: _F32, init: _F32) -> _F32:
    """Return lut (m, 16) = init (m, 16) + products of rotated (m * dsub,) with words_t (m, dsub, 16); for tests."""

def encode_additive(
    level: str,
    y: _F32,
    x: _F32,
    eta: float,
    lists: npt.NDArray[np.int32],
    weights: _F32,
    queries: _F32,
    codewords: _F32,
    codes: _U8 | None = None,
    *,
    sweeps: int,
    rounds: int,
    threads: int,
) -> _U8:
    """Search additive codes, as `vqdistill.kernels.additive.icm` has it; all levels agree where products do.

    Parameters
    ----------
    level : one of `available_levels()`
    y, x : (n, d) float32
    eta : at least 0
    lists : (n, r) int32 in -1 .. q - 1; -1 ends the list of a row
    weights : (n, r) float32, at least 0
    queries : (q, d) float32
    codewords : (m, 16, d) float32, m in 1..256
    codes : (n, m) uint8 to start from, below 16; None = greedy ones
    sweeps, rounds : 0..2^20
    threads : 1..1024

    Returns
    -------
    (n, m) uint8
    """

def best_ranks(
    level: str,
    x: _F32,
    order: _I64,
    starts: _I64,
    offsets: _I64,
    members: npt.NDArray[np.int32],
    queries: _F32,
    scores: _F32,
    *,
    most: int,
    threads: int,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Rank rows among what queries rank already, as `vqdistill.kernels.ranking.best_ranks` has it.

    Parameters
    ----------
    level : one of `available_levels()`
    x : (n, d) float32
    order : (n,) int64, rows in an order in which those of a cell follow each other
    starts : (cells + 1,) int64, rising from 0 to n: rows of cell c are order[starts[c] : starts[c + 1]]
    offsets : (cells + 1,) int64, rising from 0 to nnz: queries tried for them are members[offsets[c] : offsets[c + 1]]
    members : (nnz,) int32 in 0..q - 1
    queries : (q, d) float32
    scores : (q, r) float32, falling; r at least 1
    most : 1..2^20
    threads : 1..1024

    Returns
    -------
    lists, ranks : (n, most) int32
    """

def gemm_nt(level: str, a: _F32, b: _F32) -> _F32:
    """Return a (na, d) @ b (nb, d).T; for tests."""

def gemm_nt_f16(level: str, a: _F32, b: npt.NDArray[np.uint16]) -> _F32:
    """Return a (na, d) @ b (nb, d).T for the bits b of float16 numbers; for tests."""

def gemm_nt_i8(level: str, a: _U8, b: _U8) -> _F32:
    """Return the products of rows of bytes, a scale before each: a (na, 4 + d), b (nb, 4 + d); for tests."""

def dense_scores(
    level: str, metric: Literal["ip", "l2"], dtype: Literal["f32", "f16", "bf16", "i8"], query: _F32, rows: _U8
) -> _F32:
    """Return the exact scores of dense rows as they are stored: query (d,), rows (b, stride) -> (b,); for tests.

    A row takes 4 d bytes (f32), 2 d (f16, bf16) or 4 + d (i8: one float32 scale, then d int8).
    """

def unit_rows(rows: _F32) -> tuple[_F32, int]:
    """Scale rows (b, d) to unit norm, as `vqdistill.kernels.units.unit_rows` has it.

    Returns
    -------
    them, and the first one whose norm is 0 or not finite, -1 if there is none; what follows it is not written
    """

def take_integers(numbers: _I64, rows: _I64, low: int = ..., high: int = ...) -> tuple[_I64, bool]:
    """Take numbers (n,) at rows (b,), and -1 at rows that are negative.

    Returns
    -------
    them, (b,) int64, and whether no number taken is -1, below `low` or above `high`
    """

def candidate_count(k: int, refine: int, n: int) -> int:
    """Return how many candidates a search for k results has in an index of n rows; refine = 0: codes only."""

def merge_candidates(scores: Sequence[_F32], ids: Sequence[_I64]) -> tuple[_I64, _I64]:
    """Merge the candidates of parts of an index, as `Engine.candidates` gives them, ids being positions in the whole.

    Parameters
    ----------
    scores, ids : (q, count) of each part

    Returns
    -------
    origins : (q, count) int64, part * count + place of the best `count` of all, best first; -1 behind the last
    reads : (q, parts) int64, how many of each part these are, its first ones
    """

def choose_results(
    code: _F32, exact: _F32, ids: _I64, *, k: int, misses: float = 0.0, error: float = 0.0
) -> tuple[_F32, _I64, _I64]:
    """Choose the results that `Engine.search` has, out of the candidates of all parts of an index.

    Parameters
    ----------
    code : (q, count) float32, scores of the codes, falling; -inf behind the last candidate
    exact : (q, count) float32, scores of the rows
    ids : (q, count) int64, positions in the whole; of equal scores rising
    k, misses, error : as for `Engine.search`

    Returns
    -------
    scores, ids : (q, k), as of `Engine.search`
    read : (q,) int64, candidates up to where the search would have stopped to read
    """

@final
class Engine:
    """Searches the resident arrays of one index; safe under concurrent calls, which run outside the GIL.

    It keeps references to the arrays, which must not be changed. Their contents are not checked beyond what keeps a
    mistake from reading foreign memory.

    Parameters
    ----------
    metric : of prepared vectors; cosine is "ip" on unit rows
    residual : whether the term of list l is <q, coarse[l]> instead of <q, mean>; not with "l2"
    list_offsets : (nlist + 1,) int64, rising from 0 to n; list l = positions list_offsets[l] .. list_offsets[l + 1]
    router : (nlist, d) float32, or float16 but for "l2"; a list's routing score is <q, router[l]>, or
        2 <q, router[l]> - |router[l]|^2 for l2
    coarse : (nlist, d) float32 or float16
    mean : (d,) float32
    rotation : (m * dsub, d) float32; (0, d) for additive codes, not with "l2"
    codewords : (m, 16, dsub) float32, or float16 for additive codes, whose dsub is d
    packed : (ceil(n / 32), m // 2, 32) uint8, all rows in list order; or these codes as `scan_order` returns them
    dense_fd : open file of the dense rows: position p starts at dense_offset + p * stride (see `dense_scores`). Not
        owned: keep it open as long as the engine searches.
    dense_offset : bytes before the first row
    dense_dtype : "none" if there are no dense rows
    dense_map : read-only map of the whole file of dense_fd, or None. The file must not become shorter as long as the
        engine lives, which would end the process.
    io : how dense rows are read. "map": from dense_map. "pread": by a pool of threads. "uring": by io_uring. "auto":
        from dense_map what the page cache has; the rest by io_uring, or by the pool where the system denies it.
    query_adapter : (down, bias, up, rank, unit): (units, d) and (d, units) float32 or float16, bias (units,) float32.
        Every query q becomes q + up z, z = down q + bias, of which all but the first `rank` units are cut off below 0;
        if `unit`, it is then scaled to unit norm, or stays q where it has none. None = queries stay what they are
    verify_adapter : the same, on top of it, for the scores of dense rows
    added : further sets of rows (list_offsets, packed, dense_fd, dense_map), as those of the first; their positions
        follow one another. dense_fd is of no account without dense rows
    alive : `allow` of searches that name none, and the rows that the lists count as theirs; None = all rows
    spread : files (list_offsets, dense_fd, dense_map) in place of dense_fd and dense_map, and not with added: within
        each list the rows of one file follow those of the file before. Their list_offsets add up to those of the engine
    whole : (nlist,) int64, rows of each list of the index that the engine's rows are a part of, and by which lists are
        chosen; None = they are all

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or value, or this system does not have what `io` says.
    """

    def __init__(
        self,
        *,
        metric: Literal["ip", "l2"],
        residual: bool,
        list_offsets: _I64,
        router: _Table,
        coarse: _Table,
        mean: _F32,
        rotation: _F32,
        codewords: _Table,
        packed: _U8,
        dense_fd: int = -1,
        dense_offset: int = 0,
        dense_dtype: str = "none",
        dense_map: mmap | None = None,
        io: str = "auto",
        query_adapter: _Adapter | None = None,
        verify_adapter: _Adapter | None = None,
        added: Sequence[tuple[_I64, _U8, int, mmap | None]] = (),
        alive: _Allow | None = None,
        spread: Sequence[tuple[_I64, int, mmap | None]] = (),
        whole: _I64 | None = None,
    ) -> None: ...
    def search(
        self,
        queries: _F32,
        *,
        k: int,
        nprobe: int,
        lift: float = 0.0,
        temperature: float = 1.0,
        refine: int,
        misses: float = 0.0,
        error: float = 0.0,
        allow: _Allow | None = None,
        threads: int,
        timeout_s: float = ...,
    ) -> tuple[_F32, _I64, _I64]:
        """Find the k best rows of each query.

        Parameters
        ----------
        queries : (q, d) float32, prepared
        k : results a query, at least 1
        nprobe : lists visited a query, 1..nlist, at most; empty lists count, lists without an allowed row are left out
        lift : 0 = visit the nprobe lists of the highest routing scores. More: softmax(scores / temperature) over all
            lists is the probability p of each; visit the lists with p / (share of all rows in the list) >= lift, in the
            order of this ratio, at least one; empty ones are left out. With `allow`, lift is multiplied by the share of
            rows that are allowed. Lists that tie go by lower number.
        temperature : of the softmax, above 0; of no account without a lift
        refine : 0 = scores of the codes: the best k + k // 8 + 16 rows by 8-bit tables are scored again with the float
            tables. Otherwise the best max(refine, k) rows by 8-bit tables are candidates, read from disk and scored
            exactly.
        misses : 0 = read all candidates. More: read them by falling code score, max(16, k) and then 16 at a time, until
            those not read are expected to hold no more than `misses` of the k results. The exact score of a row is
            taken to be normal around its code score + the mean error of the query's rows read so far, with a variance
            between theirs and error^2, which counts as that of 20 rows.
        error : standard deviation of the errors of other queries, above 0 if misses is
        allow : (blocks, per_list): uint32, one for each block of each set, one set after the other: bit r of block b of
            a set = its row 32 b + r may be found; and (nlist,) int64, the number of such rows in each list, which is
            not checked against the blocks. None = those that are alive
        threads : 1..1024, over the queries; over lists where queries are fewer and scan long enough
        timeout_s : seconds until the call is given up, above 0; inf = never. Looked at between parts of the work.

        Returns
        -------
        scores : (q, k) float32, best first; -inf where nothing was found
        positions : (q, k) int64; -1 where nothing was found; equal scores go by lower position
        stats : (q, 7) int64, for each query: lists visited; rows of these lists; candidates; dense rows read; pages of
            4 KiB and bytes read, and ns of waiting for them. A row, page or byte that queries of a call share counts
            for the first of them in pages and bytes.

        A row whose score is NaN or -inf is not found. Results depend on nothing but the query and the options other
        than threads and timeout_s; so do the first four of the stats.

        Raises
        ------
        TypeError, ValueError
            If an argument has the wrong dtype, shape or value, or refine is positive without dense rows.
        OSError
            If reading dense rows fails; errno says why. EIO if the file ends before a row.
        TimeoutError
            If timeout_s have passed.
        KeyboardInterrupt
            Or whatever else a signal handler raises, within a moment, when the main thread searches.
        """
    def prepare_search(
        self,
        queries: _F32,
        *,
        k: int,
        nprobe: int,
        lift: float = 0.0,
        temperature: float = 1.0,
        refine: int,
        misses: float = 0.0,
        error: float = 0.0,
        allow: _Allow | None = None,
        threads: int,
        timeout_s: float = ...,
    ) -> PreparedSearch:
        """Check what `search` would, for a `SearchPool` to run it; queries must not be changed until it has ended.

        Raises
        ------
        TypeError, ValueError
            As `search`.
        """
    def plan(
        self,
        queries: _F32,
        *,
        nprobe: int,
        lift: float = 0.0,
        temperature: float = 1.0,
        rescore: bool,
        allow: _Allow | None = None,
        timeout_s: float = ...,
    ) -> tuple[_I64 | None, npt.NDArray[np.int32], _F32, _U8, npt.NDArray[np.float64], _F32]:
        """Work out what a search in which several parts of an index take part needs to know of its queries.

        Parameters
        ----------
        rescore : whether scores by the float tables are wanted
        queries, nprobe, lift, temperature, allow, timeout_s : as for `search`

        Returns
        -------
        offsets : (q + 1,) int64, those of each query's lists; None = all visit every list, whose rows share a base
        lists : (visits,) int32, best first
        terms : (visits,) float32, what each of them adds to the scores of its rows
        tables : (q, m * 16) uint8
        scales : (q, 3) float64: bias and step of the tables, and what all rows of the query have in common
        luts : (q, m * 16) float32, what tables were rounded from; (0, m * 16) if not to be scored again

        Raises
        ------
        TypeError, ValueError, TimeoutError, KeyboardInterrupt
            As `search`.
        """
    def candidates(
        self,
        *,
        offsets: _I64 | None,
        lists: npt.NDArray[np.int32],
        terms: _F32,
        tables: _U8,
        scales: npt.NDArray[np.float64],
        luts: _F32,
        count: int,
        allow: _Allow | None = None,
        threads: int,
        timeout_s: float = ...,
    ) -> tuple[_F32, _F32, _I64, npt.NDArray[np.int32], _I64]:
        """Find the best rows of each query by code, for a search in which other parts of the index take part.

        Parameters
        ----------
        offsets, lists, terms, tables, scales, luts : what `plan` of the whole index gave
        count : candidates a query, as `candidate_count` has them for the whole
        allow, threads, timeout_s : as for `search`

        Returns
        -------
        scores : (q, count) float32 by 8-bit tables, falling; -inf where nothing was found
        rescored : (q, count) float32 by float tables; (q, 0) without these
        positions : (q, count) int64; equal scores go by lower position, -1 where nothing was found
        lists : (q, count) int32 of these rows
        stats : (q, 7), as of `search`

        Raises
        ------
        TypeError, ValueError, TimeoutError, KeyboardInterrupt
            As `search`.
        """
    def score(
        self, queries: _F32, positions: _I64, reads: _I64, *, threads: int, timeout_s: float = ...
    ) -> tuple[_F32, _I64]:
        """Score rows by what is stored of them.

        Parameters
        ----------
        positions : (q, count) int64
        reads : (q,) int64, how many of each row of `positions` are wanted, the first ones

        Returns
        -------
        scores : (q, count) float32, -inf behind those that were wanted
        stats : (q, 7), as of `search`

        Raises
        ------
        TypeError, ValueError, OSError, TimeoutError, KeyboardInterrupt
            As `search`.
        """
    def range_search(
        self,
        queries: _F32,
        *,
        threshold: float,
        margin: float,
        verify: bool,
        nprobe: int,
        lift: float = 0.0,
        temperature: float = 1.0,
        allow: _Allow | None = None,
        threads: int,
        timeout_s: float = ...,
    ) -> tuple[_I64, _F32, _I64, _I64]:
        """Find every row of the visited lists that scores at least the threshold.

        Parameters
        ----------
        threshold : lowest score of a result
        margin : at least 0; candidates are the rows whose score by 8-bit tables is at least threshold - margin
        verify : whether candidates are scored exactly by their dense rows; otherwise with the float tables
        queries, nprobe, lift, temperature, allow, threads, timeout_s : as for `search`

        Returns
        -------
        counts : (q,) int64, results of each query
        scores : (h,) float32, query after query, best first within each
        positions : (h,) int64; equal scores go by lower position
        stats : (q, 7) int64, as for `search`

        Raises
        ------
        TypeError, ValueError, OSError, TimeoutError, KeyboardInterrupt
            As `search`.
        """

@final
class PreparedSearch:
    """A search of an engine, which lives as long; see `Engine.prepare_search`."""

    def result(self) -> tuple[_F32, _I64, _I64]:
        """Return what `Engine.search` would, or raise its OSError or TimeoutError.

        Raises
        ------
        ValueError
            If it has not ended.
        """

@final
class SearchPool:
    """Threads that run prepared searches and never take the GIL.

    Searches that wait while all threads are busy are shared out among them; those of a share that are of one engine and
    differ in nothing but queries and timeout are searched together, up to 16, and up to 64 queries.

    Parameters
    ----------
    threads : 1..1024
    ready_fd : where 8 bytes are written whenever searches have ended: an eventfd, or the end of a pipe that does not
        block. Not owned: keep it open until the pool is closed.
    avoided_core : where searches of less than 16 queries do not run, and for which they leave one thread of several to
        larger ones; -1: none

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or value.
    RuntimeError
        If the system gives not one thread.
    """

    def __init__(self, threads: int, ready_fd: int, avoided_core: int = -1) -> None: ...
    def submit(self, search: PreparedSearch, ticket: Any) -> None:
        """Have a search run; its timeout begins now.

        Raises
        ------
        ValueError
            If it was submitted before, or the pool is closed.
        """
    def collect(self) -> list[Any]:
        """Return the tickets of searches that have ended since the last time, whether they failed or not."""
    def close(self) -> list[Any]:
        """Wait for the searches that threads have begun, which can be collected then; tickets of the others."""

@final
class RowReader:
    """Reads and scores dense rows as a search does, apart from it; for tests and benches, one thread at a time.

    Parameters
    ----------
    fd, map, offset, dtype, d, io : as dense_fd, dense_map, dense_offset and dense_dtype of `Engine`
    depth : reads under way at the same time; with 1, "pread" reads on the caller's thread, one after another

    Raises
    ------
    TypeError, ValueError
        As `Engine`.
    """

    def __init__(
        self,
        *,
        fd: int,
        map: mmap | None,
        offset: int,
        dtype: Literal["f32", "f16", "bf16", "i8"],
        d: int,
        io: str,
        depth: int = 128,
    ) -> None: ...
    def rerank(self, metric: Literal["ip", "l2"], queries: _F32, positions: _I64) -> tuple[_F32, _I64]:
        """Score rows of positions (q, r) for queries (q, d).

        Returns
        -------
        scores : (q, r) float32, exact
        counts : (q, 4) int64: rows, pages of 4 KiB, bytes, and ns of waiting. What several queries want is read for the
            first of them.

        Raises
        ------
        TypeError, ValueError
            If an argument has the wrong dtype or shape.
        OSError
            If reading fails; EIO if the file ends before a row.
        """
