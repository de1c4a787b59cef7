"""Capacity on paper: bytes are those of the real layout, times follow from rates, and bad machines get one sentence."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vqdistill
from vqdistill.cli import main
from vqdistill.compiler import cost
from vqdistill.compiler.capacity import RANKS, RESERVED, TERMS, capacity
from vqdistill.compiler.machine import Machine
from vqdistill.compiler.memory import LARGEST
from vqdistill.compiler.rates import Rates
from vqdistill.compiler.supervision import RESERVED as REALLY_RESERVED
from vqdistill.config import IvfPqConfig
from vqdistill.errors import BudgetInfeasible, InvalidInput
from vqdistill.index.opening import open_index
from vqdistill.model import additive, learned

MACHINE = Machine.parse("64 cores, 256GiB, 4 NVMe")
ISSUE = ["--rows", "1e9", "--dim", "768", "--ram", "24B/vec", "--recall", "0.95@10"]
ISSUE += ["--machine", "64 cores, 256GiB, 4 NVMe"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("64 cores, 256GiB, 4 NVMe", Machine(cores=64, memory_bytes=256 << 30, disks=4)),
        (
            "1 core,2.5 GB RAM,1 nvme of 2TB",
            Machine(cores=1, memory_bytes=2_500_000_000, disks=1, disk_bytes=2 * 10**12),
        ),
        ("25Gbit/s, 4 NVMe, 8 cores, 1TiB", Machine(cores=8, memory_bytes=1 << 40, disks=4, network_bits=25e9)),
    ],
)
def test_a_machine_is_read(text: str, wanted: Machine) -> None:
    assert Machine.parse(text) == wanted


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "machine must be such as"),
        ("64 cores, 256GiB", "machine must name disks too"),
        ("4 NVMe", "machine must name cores, memory too"),
        ("64 cores, 256GiB, 4 NVMe, 2 GPUs", "got '2 GPUs'"),
        ("64 cores, 32 cores, 256GiB, 4 NVMe", "machine must name cores once"),
        ("0 cores, 256GiB, 4 NVMe", "machine must have some"),
        ("64 cores, 256 apples, 4 NVMe", "got '256 apples'"),
        ("-1 cores, 256GiB, 4 NVMe", "got '-1 cores'"),
        ("64 cores, 256GiB, 4 NVMe of 3 bananas", "got '4 NVMe of 3 bananas'"),
    ],
)
def test_another_machine_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence) as refused:
        Machine.parse(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "options", [{"codes": "pq", "distill": False}, {"codes": "pq", "distill": False, "dense": "i8"}]
)
def test_bytes_are_those_of_an_index(tmp_path: Path, options: dict[str, Any]) -> None:
    rows = np.random.default_rng(0).standard_normal((700, 24)).astype(np.float32)
    vqdistill.compile(rows, tmp_path / "x", queries="none", ram="6B/vec", threads=1, **options)
    found = capacity(700, 24, MACHINE, ram="6B/vec", **options)
    with open_index(tmp_path / "x") as reader:
        assert found["RAM"] == reader.resident_bytes
        assert found["disk"] == sum(segment.file_bytes for segment in reader.manifest.all_segments)
    assert found["machines"] == 1


def test_more_machines_share_what_one_does_not_hold() -> None:
    one = capacity(10**9, 768, MACHINE, ram="24B/vec")
    assert one["machines"] == 1
    small = capacity(10**9, 768, replace(MACHINE, memory_bytes=16 << 30), ram="24B/vec")
    fixed, each = one.plan.ram_bytes_fixed, one.plan.ram_bytes_per_vector
    machines = int(small["machines"])
    held = 0.8 * (16 << 30) / 1.25
    assert (machines - 1) * (held - fixed) < 10**9 * each <= machines * (held - fixed)
    assert small["RAM"] == one["RAM"] + (machines - 1) * fixed
    disks = capacity(10**9, 768, replace(MACHINE, disk_bytes=10**11), ram="24B/vec")
    assert disks["machines"] == -(-disks["disk"] // (0.9 * 4 * 10**11))
    with pytest.raises(InvalidInput, match="a machine must hold .* that each has of the index"):
        capacity(10**9, 768, replace(MACHINE, memory_bytes=10**7), ram="24B/vec")
    with pytest.raises(BudgetInfeasible, match="smallest feasible"):
        capacity(10**9, 768, MACHINE, ram="0.5B/vec")


def test_times_follow_rows_and_cores() -> None:
    rates = Rates.load()
    found = capacity(10**8, 384, MACHINE, ram="16B/vec", rates=rates)
    terms, block = 16_384 * 100 / 10**8, LARGEST.block_rows(384)
    shared = 16_384 * (1 - math.exp(-terms * block / 16_384)) / block
    each = rates.encode_ns(384, found.plan.model, terms, shared) + rates.stored["shard_ns_per_byte"] * 4 * 384
    assert found["encoding"] == pytest.approx(1e-9 * 10**8 * each / 64)
    few = capacity(10**8, 384, replace(MACHINE, cores=32), ram="16B/vec", rates=rates)
    assert few["encoding"] == pytest.approx(2 * found["encoding"])
    stages = ("sample", "teacher", "training", "encoding", "publish", "certificate")
    assert found["compile"] == pytest.approx(sum(found[name] for name in stages))
    kept = capacity(100_000, 384, MACHINE, ram="16B/vec", rates=rates)
    assert kept["encoding"] < 1  # training leaves the codes of all rows
    capped = capacity(100_000, 384, MACHINE, ram="16B/vec", build_ram="3GiB", rates=rates)
    assert capped["RAM while compiling"] <= 3 << 30
    alone = capacity(10**8, 384, MACHINE, ram="16B/vec", queries=0, rates=rates)
    each = rates.encode_ns(384, alone.plan.model, 0.0) + rates.stored["shard_ns_per_byte"] * 4 * 384
    assert alone["encoding"] == pytest.approx(1e-9 * 10**8 * each / 64)
    slow = Rates(rates.stored | {"exact_ns": 2 * rates.stored["exact_ns"]})
    assert capacity(10**6, 384, MACHINE, rates=slow)["teacher"] == pytest.approx(
        2 * capacity(10**6, 384, MACHINE, rates=rates)["teacher"]
    )


def test_a_large_corpus_is_taught_by_an_index() -> None:
    how = {rows: _how(capacity(rows, 768, MACHINE, ram="24B/vec"), "teacher") for rows in (10**6, 10**9)}
    assert how[10**6].startswith("exact:") and how[10**9].startswith("an index:")


def _how(found: Any, name: str) -> str:
    return next(figure.how for figure in found.figures if figure.name == name)


def test_what_it_repeats_is_so() -> None:
    assert (RANKS, TERMS, RESERVED) == (learned.DEPTH, learned.PER_ROW, REALLY_RESERVED)
    for m in (16, 96):
        rounds = max(additive._ENCODE_ROUNDS, m // 2)
        assert cost.encode_work(8, IvfPqConfig(nlist=4, m=m), terms=0)["search"] == 16 * m * rounds


def test_stored_rates_name_their_machine_and_fit_what_was_measured() -> None:
    rates = Rates.load()
    assert rates.stored["machine"]["processor"] in rates.origin
    for codes in ("additive", "pq"):
        for point in rates.stored[codes]["points"]:
            model = IvfPqConfig(nlist=point["nlist"], m=point["m"], codes=codes)
            error = abs(rates.encode_ns(point["d"], model, point["terms"], point["shared"]) / point["ns"] - 1)
            assert error <= rates.stored[codes]["largest_error"] + 1e-9


def test_the_command_says_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["plan", *ISSUE])
    text = capsys.readouterr().out
    assert done.value.code == 0
    names = ["machines", "RAM", "disk", "network: input", "sample", "teacher", "training", "encoding", "publish"]
    for name in [*names, "certificate", "compile", "queries", "p99", "assumed"]:
        assert any(line.split("  ")[1 if line.startswith("  ") else 0].strip() == name for line in text.splitlines()), (
            name
        )
    assert "recall: 0.95@10 is assumed" in text and "bench/rates.py" in text
    with pytest.raises(SystemExit):
        main(["plan", *ISSUE, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {figure["name"] for figure in found["figures"]} >= set(names) and all(f["how"] for f in found["figures"])
    assert found["plan"]["facts"]["n"] == 10**9 and found["machine"]["cores"] == 64


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "plan must be given INPUT, or --rows, --dim and --machine"),
        (ISSUE[:2], "plan must be given INPUT, or --rows, --dim and --machine"),
        (["rows.npy", *ISSUE], "--rows stands in for INPUT, got both"),
        (["rows.npy", "--build-ram", "1GiB"], "--build-ram stands in for INPUT"),
        ([*ISSUE, "--rows", "many"], "wanted a number of rows up to 1e12"),
        ([*ISSUE, "--rows", "1e99"], "wanted a number of rows up to 1e12"),
        ([*ISSUE, "--rows", "1.5"], "wanted a number of rows up to 1e12"),
        ([*ISSUE, "--ids", "id"], "--ids needs INPUT"),
        ([*ISSUE, "--teacher", "labels:x"], "--teacher and --mix need INPUT"),
        ([*ISSUE, "--queries", "q.npy"], "--queries must be their number"),
        ([*ISSUE, "--machine", "a big one"], "machine must be such as"),
        ([*ISSUE, "--recall", "high"], "recall must be a target"),
    ],
)
def test_bad_options_get_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["plan", *arguments])
    said = capsys.readouterr()
    assert done.value.code == 2 and said.out == "" and sentence in said.err.splitlines()[-1]
