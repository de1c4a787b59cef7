"""Options, one frozen dataclass per concern; each is checked when it is made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from vqdistill.errors import InvalidInput

KSUB = 16
"""Codewords per subspace: codes have 4 bits, two to a byte, the width of one SIMD table look-up."""
BLOCK_ROWS = 32
"""Rows whose codes are interleaved for the scan: one AVX2 register of bytes."""

LOSSES = (
    "listnet",
    "kl",
    "reverse_kl",
    "mse",
    "margin_mse",
    "ranknet",
    "infonce",
    "wasserstein",
    "margin_at_rank",
)
"""Names of what holds a student's ranking against the teacher's; distill.losses has them."""
SAMPLERS = ("topk", "mined", "walk", "snowball")
"""Names of what chooses the queries and documents of a training step; distill.samplers has them."""

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def _require(ok: bool, name: str, got: Any, wanted: str) -> None:
    if not ok:
        raise InvalidInput(f"{name} must be {wanted}, got {got!r}")


def _is_int(value: Any, low: int, high: int | None = None) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low and (high is None or value <= high)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the index may keep in memory: bytes for each added vector, or bytes for the whole resident set."""

    ram_bytes: int | None = None
    """Everything resident: codes, list table, router, rotation, codewords. None = not bounded."""
    bytes_per_vector: float | None = None
    """What one more vector adds to memory; fixed parts are reported beside it. None = not bounded."""

    def __post_init__(self) -> None:
        given = (self.ram_bytes is not None) + (self.bytes_per_vector is not None)
        _require(
            given == 1,
            "budget",
            (self.ram_bytes, self.bytes_per_vector),
            "exactly one of ram_bytes and bytes_per_vector",
        )
        value = self.ram_bytes if self.ram_bytes is not None else self.bytes_per_vector
        _require(isinstance(value, (int, float)) and 0 < value < 2**63, "budget", value, "a positive number of bytes")

    @classmethod
    def parse(cls, text: str | Budget) -> Budget:
        """Read "32B/vec" or "64MiB" (units B, KB, MB, GB, TB in powers of 1000; K, KiB, M, MiB, ... in powers of 1024).

        Raises
        ------
        InvalidInput
            If `text` is no such size.
        """
        if isinstance(text, Budget):
            return text
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*(/\s*vec(?:tor)?)?\s*", str(text))
        unit = _UNITS.get(found[2].lower()) if found else None
        if found is None or unit is None:
            raise InvalidInput(f'ram must be a size such as "32B/vec" or "64MiB", got {text!r}')
        size = min(float(found[1]) * unit, 2.0**63)  # more is out of range, and int(inf) would not say so
        return cls(bytes_per_vector=size) if found[3] else cls(ram_bytes=int(size))


@dataclass(frozen=True, kw_only=True)
class RecallTarget:
    """Share of the exact k nearest rows that a search should find."""

    recall: float
    """Wanted recall@k, above 0 and below 1."""
    k: int = 10
    """Neighbours that count."""

    def __post_init__(self) -> None:
        _require(_is_finite(self.recall) and 0 < self.recall < 1, "recall", self.recall, "a number between 0 and 1")
        _require(_is_int(self.k, 1, 1000), "k of a recall target", self.k, "an integer in 1..1000")

    @classmethod
    def parse(cls, text: str | float | RecallTarget) -> RecallTarget:
        """Read "0.95@10", or 0.95 alone, which is of the best 10.

        Raises
        ------
        InvalidInput
            If `text` is no such target.
        """
        if isinstance(text, RecallTarget):
            return text
        found = re.fullmatch(r"\s*(\d*\.?\d+)\s*(?:@\s*(\d{1,9}))?\s*", str(text))
        if found is None:
            raise InvalidInput(f'recall must be a target such as "0.95@10", got {text!r}')
        return cls(recall=float(found[1]), k=int(found[2] or 10))

    def __str__(self) -> str:
        return f"{self.recall:g}@{self.k}"


@dataclass(frozen=True, kw_only=True)
class IvfPqConfig:
    """Shape of a model: lists, subspaces, and what is coded."""

    nlist: int
    """Lists. More lists: fewer codes scanned at the same recall, more fixed bytes (4 d each) and routing work."""
    m: int
    """Codes a row, even; a row takes m / 2 bytes. More: better recall, a proportionally longer scan."""
    codes: str = "additive"
    """"additive": m codebooks of full dimension, whose sum stands for a row; most recall per byte, dearer look-up
    tables (16 m d products a query) and encoding. "pq": rotation and m subspaces, as elsewhere; l2 needs it."""
    residual: bool | None = None
    """Code x - coarse[list] (True) or x - mean (False). None: additive codes take residuals, whose list tells them 8
    bits or more for nothing; product codes try both, and held-out queries decide. l2 codes the vector only."""
    tables: str = "f32"
    """Element type in memory of router, coarse and codewords: "f32", or for additive codes "f16", or "i8" with a scale
    for each row. Each halves the fixed bytes of the one before and the time of a single query's tables; rounding moves
    scores by far less than their codes' errors. Adapters are float16 beside i8."""
    query_units: int = 0
    """Units of the query adapter (see `DistillConfig.adapter_rank`), 2 d values each; 0 = queries stay as they are."""
    verify_units: int = 0
    """Units of the adapter on top of it that verification has for its own, likewise."""
    seed: int = 0
    """Seed of every random choice in training the undistilled start."""

    def __post_init__(self) -> None:
        _require(_is_int(self.nlist, 1, 2**24), "nlist", self.nlist, "an integer in 1..2^24")
        _require(_is_int(self.m, 2, 256) and self.m % 2 == 0, "m", self.m, "an even integer in 2..256")
        _require(self.codes in ("additive", "pq"), "codes", self.codes, "additive or pq")
        allowed = ("f32", "f16", "i8") if self.codes == "additive" else ("f32",)
        _require(self.tables in allowed, "tables", self.tables, f"{', '.join(allowed)} for {self.codes} codes")
        for name in ("query_units", "verify_units"):
            _require(_is_int(getattr(self, name), 0, 2**16), name, getattr(self, name), "an integer in 0..2^16")
        _require(
            self.residual is None or isinstance(self.residual, bool), "residual", self.residual, "True, False or None"
        )
        _require(_is_int(self.seed, 0), "seed", self.seed, "a non-negative integer")


STAGES = ("space", "lists", "codes", "tables", "router")
"""Stages of distillation: coordinates of the codes, lists shaped by queries, codes for each row's queries, look-up
tables (product codes: rotation and codewords), router."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How the query side of a model is trained. The defaults were chosen on held-out learn queries."""

    seed: int = 0
    """Seed of the split into training and held-out queries and of every batch."""
    enabled: bool = True
    """False stops after the undistilled start; the held-out queries then only choose that start."""
    skip: tuple[str, ...] = ()
    """Stages left out, of STAGES; for measuring what each brings."""
    loss: str = "listnet"
    """One of LOSSES. None was better than listnet on the development data; kl has the same gradient. infonce sees only
    the first document or the best labels; mse and margin_mse need several scores a query."""
    sampler: str = "topk"
    """One of SAMPLERS: random queries ("topk"), with hard negatives that the present student ranks first ("mined"), or
    queries that share documents, found by a random walk ("walk") or breadth-first ("snowball")."""
    mine_every: int = 10
    """Steps between looks at the present student by the sampler "mined". Fewer: fresher negatives, more scans."""
    debias: bool = False
    """Whether shared documents count by the inverse of their chance to be in a batch, which is larger where many lists
    begin with them."""
    false_negatives: float | None = None
    """With pair scores and labels: leave out of a query's negatives what it does not list and whose dense similarity is
    above this share of the way from that of the mean document to that of the best listed one. None: leave none out; on
    the labels of the development data, shares of 0.8 to 1.1 were all a little worse."""
    temperature: str = "global"
    """Calibrate one temperature for all lists ("global") or one for each ("query")."""
    depth: int = 200
    """Teacher documents per query, all of them used. Fewer: cheaper, and worse in the tail (Distill-VQ, table 3)."""
    random_docs: int = 1024
    """Random documents shared by a batch; they keep far documents from creeping up. In-batch documents come on top."""
    batch: int = 128
    """Queries per step."""
    steps: int = 120
    """Steps of each stage at most; held-out recall has peaked before that on the development data."""
    eval_every: int = 10
    """Steps between looks at the held-out queries."""
    patience: int = 4
    """Looks without a gain after which a stage stops."""
    list_length: float = 40.0
    """Effective list length that the temperature is calibrated to. 10 to 100 differ by noise; T = 1 on unit vectors
    loses most."""
    codewords_rate: float = 0.025
    """Adam step of codewords, as a share of their root mean square."""
    rotation_rate: float = 0.006
    """Adam step of the rotation, likewise. Larger steps outrun the codes."""
    tables_rate: float = 0.005
    """Adam step of the tables of additive codes, whose codes are frozen, likewise."""
    router_rate: float = 0.02
    """Adam step of the router, likewise."""
    router_steps: int = 600
    """Steps of the router at most. Twice as many: 1 to 2 % fewer rows scanned at equal coverage."""
    router_batch: int = 512
    """Queries per step of the router, which sees nothing but queries and lists."""
    router_eval_every: int = 100
    """Steps of the router between looks at the held-out queries."""
    adapter_rank: int = 128
    """Rank of the linear part of an adapter of queries, which labels and pair scores train, at most the dimensions. On
    debian (MRR@10 of queries that nothing was chosen by) 64 has .665, 96 .668, and all 384 .669."""
    adapter_hidden: int = 64
    """Units of its residual network; without any it is 0.001 less. 0 = the adapter is linear."""
    adapter_rate: float = 0.02
    """Adam step of an adapter, in units of 1 / sqrt(d), the size of entries that keep norms; twice as much loses 0.003
    of MRR@10 on debian."""
    adapter_steps: int = 200
    """Steps of an adapter at most; held-out quality has peaked before that on the development data."""
    adapter_batch: int = 512
    """Queries per step of an adapter, fewer where they have many documents."""
    adapter_negatives: int = 16
    """Hard negatives drawn for each query, and shared by the batch; 8 lose 0.002 of MRR@10 on debian, 3 lose 0.006."""
    adapter_list_length: float = 15.0
    """Effective length of the list of hard negatives that the temperature is calibrated to: 0.03 for debian, where
    0.04 loses 0.007 of MRR@10, and 0.02 (a length of 6) 0.002."""
    adapter_refresh: int = 100
    """Steps of an adapter between two searches for hard negatives, two passes over 25,000 queries. A search at the
    start alone loses 0.003, one every 50 steps gains nothing."""
    adapter_eval_every: int = 25
    """Steps of an adapter between looks at the held-out queries."""
    held_out: int = 1000
    """Queries kept from training to decide between starts, stop early and guard, at most a fifth of all."""
    train_bytes: int = 512 << 20
    """Float32 bytes of the rows that training keeps in memory; larger corpora are sampled around the teacher's
    lists."""
    codebook_rows: int | None = None
    """Training rows that codebooks are fitted to at most; None = as many as still help: 40,960 for additive codes, more
    from m = 66 on, and 65,536 for product codes."""

    def __post_init__(self) -> None:
        _require(self.loss in LOSSES, "loss", self.loss, f"one of {', '.join(LOSSES)}")
        _require(self.sampler in SAMPLERS, "sampler", self.sampler, f"one of {', '.join(SAMPLERS)}")
        _require(self.temperature in ("global", "query"), "temperature", self.temperature, "global or query")
        share = self.false_negatives
        _require(
            share is None or (_is_finite(share) and share > 0), "false_negatives", share, "a positive number or None"
        )
        counts = ("depth", "batch", "steps", "eval_every", "patience", "held_out", "mine_every")
        router = ("router_steps", "router_batch", "router_eval_every")
        adapter = ("adapter_rank", "adapter_steps", "adapter_batch", "adapter_refresh", "adapter_eval_every")
        for name in (*counts, *router, *adapter):
            _require(_is_int(getattr(self, name), 1), name, getattr(self, name), "a positive integer")
        for name in ("codewords_rate", "rotation_rate", "tables_rate", "router_rate", "adapter_rate"):
            _require(_is_finite(getattr(self, name)), name, getattr(self, name), "a finite number of at least 0")
        known = isinstance(self.skip, tuple) and set(self.skip) <= set(STAGES)
        _require(known, "skip", self.skip, f"a tuple of names among {', '.join(STAGES)}")
        for name in ("random_docs", "adapter_hidden", "adapter_negatives"):
            _require(_is_int(getattr(self, name), 0), name, getattr(self, name), "a non-negative integer")
        length = self.adapter_list_length
        _require(_is_finite(length) and length > 1, "adapter_list_length", length, "a finite number above 1")
        _require(_is_int(self.seed, 0), "seed", self.seed, "a non-negative integer")
        _require(_is_int(self.train_bytes, 1 << 20), "train_bytes", self.train_bytes, "at least 1 MiB")
        rows = self.codebook_rows
        _require(rows is None or _is_int(rows, KSUB), "codebook_rows", rows, f"at least {KSUB}, or None")
        _require(
            1 < self.list_length <= self.depth,
            "list_length",
            self.list_length,
            f"above 1 and at most depth {self.depth}",
        )

    def adapter_units(self, d: int) -> int:
        """Units of an adapter of queries of `d` dimensions."""
        return min(self.adapter_rank, d) + self.adapter_hidden


@dataclass(frozen=True, kw_only=True)
class SearchParams:
    """How one search trades work for recall; None leaves a choice to the calibration stored in the index."""

    nprobe: int | None = None
    """Lists visited per query, 1..nlist; with `coverage`, at most. Recall and scanned codes both grow with it. None:
    as many as `coverage` takes."""
    coverage: float | None = None
    """Share of the true neighbours that the visited lists should hold: queries that fit few lists visit few. None: the
    index's default, unless nprobe says how many."""
    refine: int | None = None
    """Candidates (best by code) whose dense rows are read and scored exactly, at least k; 0 = codes only, no disk read;
    with `confidence`, at most. None: the index's default, or k if that is more."""
    confidence: float | None = None
    """Reading stops when this share of the k results is expected among the candidates read. Near 1: more reads, less
    lost. None: the index's default, unless refine says how many."""
    recall: float | None = None
    """Recall that the index's certificate must promise, instead of the options above. None: these decide."""
    threads: int = 1
    """Threads over the queries of a call, or over the lists of fewer long queries. Results do not depend on it."""
    timeout_s: float | None = None
    """Seconds after which the call is given up. None: never."""

    def __post_init__(self) -> None:
        _require(self.nprobe is None or _is_int(self.nprobe, 1), "nprobe", self.nprobe, "a positive integer")
        _require(self.refine is None or _is_int(self.refine, 0, 2**40), "refine", self.refine, "an integer in 0..2^40")
        for name in ("coverage", "confidence", "recall"):
            value = getattr(self, name)
            _require(value is None or (_is_finite(value) and 0 < value < 1), name, value, "a number between 0 and 1")
        others = [name for name in ("nprobe", "coverage", "refine", "confidence") if getattr(self, name) is not None]
        alone = self.recall is None or not others
        _require(alone, "recall", self.recall, f"None where {' and '.join(others)} say how to search")
        _require(_is_int(self.threads, 1, 1024), "threads", self.threads, "an integer in 1..1024")
        limit = self.timeout_s
        _require(limit is None or (_is_finite(limit) and limit > 0), "timeout_s", limit, "a positive number of seconds")
