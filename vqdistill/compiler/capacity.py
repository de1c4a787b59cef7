"""What an index of so many rows takes, on paper: machines, bytes, hours, queries a second; from measured rates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from vqdistill.compiler import cost
from vqdistill.compiler.machine import Machine
from vqdistill.compiler.memory import AFFORDABLE, LARGEST, Sizes, parse_cap, peak_bytes, sizes_within
from vqdistill.compiler.passes import plan as make_plan
from vqdistill.compiler.plan import CompilePlan
from vqdistill.compiler.rates import Rates
from vqdistill.config import Budget, IvfPqConfig, RecallTarget
from vqdistill.errors import InvalidInput
from vqdistill.evaluate.work import NS_PER_CODE_BYTE, dense_bytes
from vqdistill.types import Facts, Metric

RESERVED = 1000
"""Queries of the certificate, see `supervision`."""
RANKS, TERMS = 100, 16
"""Documents of a query whose codes serve it, and queries that the codes of a row serve at most, see `model.learned`."""
MEMORY_SHARE, DISK_SHARE = 0.8, 0.9
"""Of a machine, that an index may take."""
OPEN_INDEX = 1.25
"""Resident bytes of an open index against its own, see `memory`."""
DISK_READ, DISK_WRITE, DISK_READS = 3e9, 1.5e9, 400_000.0
"""Bytes a second, and reads of a page a second, of an NVMe drive: of data sheets, not measured."""
DISK_LATENCY_S, AT_ONCE, TAIL = 1e-4, 32, 3.0
"""Of a read, reads of a query that are under way together, and p99 against the middle; the last as the server had it
under light load, 12.6 and 4.2 ms in a run of bench/serve.py."""


@dataclass(frozen=True)
class Figure:
    """One number, and where it comes from."""

    name: str
    value: float
    unit: str
    how: str

    def line(self) -> str:
        """Return it for people."""
        return f"  {self.name:<26}{_shown(self.value, self.unit):>16}  {self.how}"


@dataclass(frozen=True)
class Capacity:
    """All figures, and what they rest on."""

    plan: CompilePlan
    machine: Machine
    figures: tuple[Figure, ...]
    assumptions: tuple[str, ...]

    def __getitem__(self, name: str) -> float:
        return next(figure.value for figure in self.figures if figure.name == name)

    def lines(self) -> list[str]:
        """Return it for people."""
        said = [self.plan.explain("place"), "capacity", *(figure.line() for figure in self.figures)]
        return [*said, "assumed", *(f"  {text}" for text in self.assumptions)]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "plan": self.plan.to_json(),
            "machine": asdict(self.machine),
            "figures": [asdict(figure) for figure in self.figures],
            "assumptions": list(self.assumptions),
        }


def capacity(
    rows: int,
    dim: int,
    machine: Machine,
    *,
    ram: str | Budget | None = None,
    recall: str | float | RecallTarget | None = None,
    codes: str | None = None,
    dense: str | None = None,
    metric: str | None = None,
    distill: bool = True,
    build_ram: str | int | None = None,
    queries: int | None = None,
    rates: Rates | None = None,
) -> Capacity:
    """Work out what an index takes, without a row of it.

    Parameters
    ----------
    rows, dim : of float32 embeddings
    machine : all machines are like it
    ram, recall, codes, dense, metric, distill, build_ram : as for `compile`
    queries : learn queries; None = as many as a compile takes
    rates : of work; None = those stored with the package

    Raises
    ------
    InvalidInput
        If an option is not usable, or a machine cannot hold the parts that all machines hold.
    BudgetInfeasible
        If no index fits `ram`, or no compile `build_ram`.
    """
    target = RecallTarget.parse("0.95@10" if recall is None else recall)
    facts = Facts(n=rows, dim=dim, dtype="float32", metric=Metric.parse(metric or "cosine"))
    codes = codes or (None if distill else "pq")
    plan = make_plan(facts, ram, codes=codes, dense=dense or "f16")
    sizes = LARGEST
    if build_ram is not None:
        sizes = sizes_within(parse_cap(build_ram), plan, threads=machine.cores, source_bytes=0)
    work = _Work(plan, machine, Rates.load() if rates is None else rates, sizes, distill, queries)
    return Capacity(plan, machine, tuple(work.figures()), tuple(work.assumptions(target)))


def run_bytes(d: int, plan: CompilePlan) -> int:
    """Return the bytes of an encoded row before the index is published: codes, dense row, list and number."""
    return plan.ram_bytes_per_vector + dense_bytes(d, plan.dense) + 12


class _Work:
    """The arithmetic."""

    def __init__(
        self, plan: CompilePlan, machine: Machine, rates: Rates, sizes: Sizes, distill: bool, queries: int | None
    ) -> None:
        self.plan, self.machine, self.rates, self.sizes, self.distill = plan, machine, rates, sizes, distill
        self.n, self.d, self.model = plan.facts.n, plan.facts.dim, plan.model
        self.row_bytes = 4 * self.d
        self.disk_bytes = plan.disk_bytes or 0
        self.machines = self._machines()
        self.cores = self.machines * machine.cores
        self.trained = min(self.n, max(1, sizes.train_bytes // self.row_bytes))
        self.queries = sizes.queries if queries is None else min(queries, sizes.queries)
        self.exact_teacher = self.queries * self.n * self.d <= AFFORDABLE
        self.exact_proof = RESERVED * self.n * self.d <= AFFORDABLE

    def figures(self) -> Iterator[Figure]:
        yield from self._bytes()
        stages = list(self._stages())
        yield from stages
        total = sum(figure.value for figure in stages)
        yield Figure("compile", total, "s", f"all stages, one after the other, on {self.machines} machines")
        yield from self._serving()

    def assumptions(self, target: RecallTarget) -> Iterator[str]:
        law = self.rates.stored["routing"]
        yield f"rates: measured by bench/rates.py on {self.rates.origin}; other processors differ"
        yield (
            f"recall: {target} is assumed to be reached with {self.plan.ram_bytes_per_vector} B a vector; what given"
            " bytes reach cannot be known without rows: `plan INPUT --recall` tries it on a sample"
        )
        yield (
            f"search: {100 * self.rates.scanned:.2g} % of the rows are scanned, {law['reads']:.0f} read a query, as the"
            f" certificate of {self.rates.stored['dataset']} had it for {law['recall']}; with more lists the share is"
            " smaller, by how much is not known"
            + ("" if f"{target}" == law["recall"] else f"; {target} takes more or less than {law['recall']}")
        )
        yield (
            f"drives: {DISK_READ / 1e9:g} GB/s read, {DISK_WRITE / 1e9:g} GB/s written, {DISK_READS:,.0f} reads/s,"
            f" {DISK_LATENCY_S * 1e6:.0f} us a read each, {self.machine.disk_bytes / 1e12:.3g} TB; network"
            f" {self.machine.network_bits / 1e9:g} Gbit/s; of data sheets, not measured"
        )
        yield (
            f"an index takes at most {MEMORY_SHARE:.0%} of memory and {DISK_SHARE:.0%} of drives; all cores work as one"
            f" alone does; input is float32, read by every machine for its own rows; {self.queries:,} learn queries"
        )

    def _machines(self) -> int:
        """Fewest machines whose memory and drives hold an equal share each, and all that does not grow with rows."""
        memory = MEMORY_SHARE * self.machine.memory_bytes / OPEN_INDEX - self.plan.ram_bytes_fixed
        disk = DISK_SHARE * self.machine.disks * self.machine.disk_bytes
        if memory < self.plan.ram_bytes_per_vector:
            raise InvalidInput(
                f"a machine must hold {self.plan.ram_bytes_fixed:,} B that each has of the index, in"
                f" {MEMORY_SHARE:.0%} of its memory, got {self.machine.memory_bytes:,} B"
            )
        of_memory = -(-self.n * self.plan.ram_bytes_per_vector // int(memory))
        return max(of_memory, -(-self.disk_bytes // int(disk)))

    def _bytes(self) -> Iterator[Figure]:
        plan, machines = self.plan, self.machines
        fixed, each = plan.ram_bytes_fixed, plan.ram_bytes_per_vector
        yield Figure("machines", machines, "", "the fewest whose memory and drives hold the index")
        resident = plan.ram_bytes + (machines - 1) * fixed
        yield Figure("RAM", resident, "B", f"{each} B x {self.n:,} rows + {fixed:,} B of each machine, as laid out")
        a_machine = int(OPEN_INDEX * (fixed + each * -(-self.n // machines)))
        yield Figure("RAM of a machine", a_machine, "B", f"its share, x {OPEN_INDEX:g} while it is searched")
        yield Figure("disk", self.disk_bytes, "B", "all segment files, as laid out; without learn queries")
        runs = self.n * run_bytes(self.d, self.plan)
        peak = runs + self.disk_bytes
        yield Figure("disk while compiling", peak, "B", "encoded rows twice for a moment: runs and segments")
        memory = peak_bytes(self.sizes, plan, threads=self.machine.cores)
        yield Figure("RAM while compiling", memory, "B", f"of a process with {self.machine.cores} threads, at most")
        passes = self._passes()
        read = int(passes * self.n * self.row_bytes)
        yield Figure("network: input", read, "B", f"{passes:g} passes over {self.n:,} rows of {self.row_bytes:,} B")
        yield Figure("network: parts", 2 * runs, "B", "encoded rows, written by workers and read by commit")
        models = machines * fixed
        yield Figure("network: model", models, "B", f"{fixed:,} B to each machine")
        yield Figure("network: index", 2 * self.disk_bytes, "B", "uploaded once and fetched once")
        query = machines * (4 * self.d + 10 * 12)
        yield Figure("network: a query", query, "B", f"a vector to each of {machines} machines, 10 ids and scores back")

    def _passes(self) -> float:
        """Over all rows: teacher, which an index takes thrice, encoding, certificate as the teacher."""
        teacher = 1 if self.exact_teacher else 3
        return teacher + 1 + (1 if self.exact_proof else 3)

    def _stages(self) -> Iterator[Figure]:
        stored, cores = self.rates.stored, self.machine.cores
        share = self._read_s(self.trained, machines=1)
        yield Figure("sample", share, "s", f"{self.trained:,} rows of {self.row_bytes:,} B to the machine that trains")
        yield self._teacher("teacher", self.queries, self.exact_teacher)
        lists = 1e-9 * stored["lists_ns"] * self._assigned() * self.model.nlist * self.d
        fitted = min(self.trained, self.sizes.codebook_rows)
        words = 1e-9 * stored["training"]["ns_per_code"] * fitted * self.d * self.model.m
        known = 1e-9 * self.trained * self._encode_ns()
        fixed = stored["training"]["fixed_s"] if self.distill else 0.0
        yield Figure(
            "training",
            (lists + words + known) / cores + fixed,
            "s",
            f"one machine: lists {lists:,.0f} s, codebooks {words:,.0f} s and codes of the sample {known:,.0f} s of CPU"
            f" over {cores} cores, and {fixed:.0f} s that are serial",
        )
        code = self._encode_ns() if self.trained < self.n else 0.0
        ns = code + stored["shard_ns_per_byte"] * self.row_bytes
        coded = f"{code / 1000:,.1f} us of them their codes" if code else "whose codes training leaves"
        how = f"{self.n:,} rows x {ns / 1000:,.1f} us, {coded}, over {self.cores} cores"
        yield self._io("encoding", 1e-9 * self.n * ns / self.cores, self._read_s(self.n), how)
        written = self.n * run_bytes(self.d, self.plan)
        yield self._io(
            "publish",
            1e-9 * stored["publish_ns_per_byte"] * written,
            written / (DISK_READ * self.machine.disks) + self.disk_bytes / (DISK_WRITE * self.machine.disks),
            f"one machine, one core: {written:,} B in runs, put into list order",
        )
        found = self._teacher("certificate", RESERVED, self.exact_proof)
        ladder = stored["certificate_s"]
        how = f"{found.how}; and {ladder:.0f} s for the ladder of searches"
        yield Figure("certificate", found.value + ladder, "s", how)

    def _assigned(self) -> int:
        """Rows compared with all centroids while lists are trained, plain ones and those for the queries."""
        return sum(10 * min(self.trained, per_list * self.model.nlist) + self.trained for per_list in (256, 128))

    def _encode_ns(self) -> float:
        terms, shared = min(TERMS, self.queries * RANKS / self.n) if self.distill else 0.0, 0.0
        if terms:  # each row of a block has some of the queries, all equally likely
            block = self.sizes.block_rows(self.d)
            shared = self.queries * -math.expm1(-terms * block / self.queries) / block
        return self.rates.encode_ns(self.d, self.model, terms, shared)

    def _teacher(self, name: str, queries: int, exact: bool) -> Figure:
        """Exact search of all rows, or an index in memory of which a few queries are checked exactly."""
        ns = self.rates.stored["exact_ns"]
        if exact:
            spent = 1e-9 * ns * queries * self.n * self.d
            how = f"exact: {queries:,} queries x {self.n:,} rows x {self.d} over {self.cores} cores"
            return self._io(name, spent / self.cores, self._read_s(self.n), how)
        # As `index_teacher` has it.
        lists = min(round(4 * self.n**0.5), (256 << 20) // (4 * self.d) // 32)
        m = max(2, min(256, self.d // 4, (1 << 30) // self.n) // 2 * 2)
        code = self.rates.encode_ns(self.d, IvfPqConfig(nlist=lists, m=m, codes="pq"), 0.0)
        scan = NS_PER_CODE_BYTE * 0.25 * self.n * cost.bytes_per_vector(m) * queries
        spent = 1e-9 * (code * self.n + scan + ns * 200 * self.n * self.d)
        how = (
            f"an index: {self.n:,} rows into {lists:,} lists at {code / 1000:,.0f} us, {queries:,} queries over a"
            f" quarter of {m // 2} B codes, 200 queries exactly; one machine of {self.machine.cores} cores"
        )
        return self._io(name, spent / self.machine.cores, 3 * self._read_s(self.n, machines=1), how)

    def _read_s(self, rows: int, machines: int | None = None) -> float:
        """Seconds for rows to arrive and be checked, by the network and the cores of all machines, or of so many."""
        machines = machines or self.machines
        network = 8 * rows * self.row_bytes / (machines * self.machine.network_bits)
        checked: float = (
            1e-9 * self.rates.stored["read_ns_per_byte"] * rows * self.row_bytes / (machines * self.machine.cores)
        )
        return max(network, checked)

    def _io(self, name: str, cpu_s: float, io_s: float, how: str) -> Figure:
        bound = "the processors" if cpu_s >= io_s else f"reading and writing ({_shown(cpu_s, 's')} of the processors)"
        return Figure(name, max(cpu_s, io_s), "s", f"{how}; bound by {bound}")

    def _serving(self) -> Iterator[Figure]:
        machines, reads = self.machines, self.rates.stored["routing"]["reads"]
        rows = -(-self.n // machines)
        scanned = self.rates.scanned
        each = reads / machines if self.plan.dense != "none" else 0.0
        nprobe = max(1.0, scanned * self.model.nlist)
        ns = cost.query_ns(rows, self.d, self.model, self.plan.dense, scanned=scanned, lists=nprobe, reads=each)
        by_cores = self.machine.cores * 1e9 / ns
        cached = self._cached(rows)
        by_drives = self.machine.disks * DISK_READS / max(each * (1 - cached), 1e-9)
        bound = "its cores" if by_cores <= by_drives else "its drives"
        from_drives = each * (1 - cached)
        how = f"{ns / 1000:,.0f} us of a core on each machine, {from_drives:.1f} reads of drives; bound by {bound}"
        yield Figure("queries", min(by_cores, by_drives), "queries/s", how)
        waves = -(-each * (1 - cached) // AT_ONCE)
        middle = 1e-9 * ns + waves * DISK_LATENCY_S
        how = f"{TAIL:g} x {1000 * middle:.2f} ms of an idle machine, one core a query"
        yield Figure("p99", 1000 * TAIL * middle, "ms", how)

    def _cached(self, rows: int) -> float:
        """Share of the dense rows of a machine that its page cache holds, in what memory the index leaves."""
        used = OPEN_INDEX * (self.plan.ram_bytes_fixed + self.plan.ram_bytes_per_vector * rows)
        dense = max(1, rows * dense_bytes(self.d, self.plan.dense))
        return float(max(0.0, min(1.0, (MEMORY_SHARE * self.machine.memory_bytes - used) / dense)))


def _shown(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value / 3600:,.2f} h" if value >= 600 else f"{value:,.1f} s"
    if unit == "B":
        for name, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
            if value >= size:
                return f"{value / size:,.2f} {name}"
    return f"{value:,.2f} {unit}".rstrip() if value < 100 and value != int(value) else f"{value:,.0f} {unit}".rstrip()
