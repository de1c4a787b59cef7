"""CompilePlan: JSON both ways, the golden text of explain, and the bytes against the format's own arithmetic."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqdistill.compiler import cost
from vqdistill.compiler.passes import plan
from vqdistill.compiler.plan import CompilePlan
from vqdistill.config import IvfPqConfig
from vqdistill.errors import InvalidInput
from vqdistill.index.spec import RESIDENT
from vqdistill.types import Facts, Metric

FACTS = Facts(n=31_929, dim=384, dtype="float16", metric=Metric.COSINE)

GOLDEN = """\
source      31,929 rows x 384 float16, metric cosine
resolve     nlist 256: about 1.2 sqrt(n) as a power of two, 125 rows a list
fit_budget  m 64: 32 B a vector, the most within the budget of 32B/vec
lay_out     additive codes, dsub 384, vectors on disk f16, ids str
  codes                1,021,952 B  memory  u1 998 x 32 x 32
  list_offsets             2,056 B  memory  i8 257
  router                  99,328 B  memory  u1 256 x 388
  codewords              397,312 B  memory  u1 64 x 16 x 388
  mean                     1,536 B  memory  f4 384
  coarse                  99,328 B  memory  u1 256 x 388
  doc_codewords        1,572,864 B  disk    f4 64 x 16 x 384
  rows                   255,432 B  disk    i8 31929
  id_keys                255,432 B  disk    i8 31929
  id_order               255,432 B  disk    i8 31929
  doc_space              589,824 B  disk    f4 384 x 384
  dense               24,521,472 B  disk    f2 31929 x 384
  ids_offsets            255,440 B  disk    i8 31930
  ids_bytes                as read  disk
place       memory 32 B/vector + 599,560 B fixed = 1,621,512 B; disk as long as the string ids make it
work        a query that visits 16 of 256 lists scans about 1,996 codes (63,872 B)"""


def test_explain_is_the_golden_text() -> None:
    assert plan(FACTS, "32B/vec", ids_kind="str").explain() == GOLDEN


def test_explain_stops_after_the_named_pass() -> None:
    complete = plan(FACTS, "32B/vec")
    assert complete.explain("fit_budget") == "\n".join(GOLDEN.split("\n")[:3])
    with pytest.raises(InvalidInput, match="resolve, fit_budget, lay_out, place"):
        complete.explain("shard")


@given(
    n=st.integers(1, 10**8),
    dim=st.integers(1, 2000),
    metric=st.sampled_from(Metric),
    ids=st.sampled_from(["rows", "int64", "str"]),
    budget=st.sampled_from(["8B/vec", "64GiB"]),
)
def test_plan_to_json_to_plan(n: int, dim: int, metric: Metric, ids: str, budget: str) -> None:
    before = plan(Facts(n=n, dim=dim, dtype="int8", metric=metric), budget, ids_kind=ids)
    assert CompilePlan.from_json(json.loads(json.dumps(before.to_json()))) == before


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("facts", "n"), 0),
        (("facts", "metric"), "hamming"),
        (("facts", "colour"), "red"),
        (("budget", "bytes_per_vector"), 16.0),
        (("model", "m"), 62),
        (("model", "nlist"), "256"),
        (("layout", "dsub"), 5),
        (("segments", "codes", "bytes"), 1),
        (("memory",), ["codes"]),
        (("steps",), [{"name": "resolve"}]),
        (("dense",), "f64"),
        (("surplus",), 1),
    ],
)
def test_a_changed_plan_is_refused(path: tuple[str, ...], value: Any) -> None:
    document = copy.deepcopy(plan(FACTS, "32B/vec").to_json())
    place: dict[str, Any] = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(InvalidInput, match="not a compile plan"):
        CompilePlan.from_json(document)


@pytest.mark.parametrize("document", [None, [], {}, "plan", {"facts": None}])
def test_what_is_no_plan_is_refused(document: Any) -> None:
    with pytest.raises(InvalidInput, match="not a compile plan"):
        CompilePlan.from_json(document)


def sizes_by_hand(n: int, d: int, model: IvfPqConfig) -> dict[str, int]:
    nlist, m = model.nlist, model.m
    dsub = d if model.codes == "additive" else -(-d // m)
    row = {"f32": lambda d: 4 * d, "f16": lambda d: 2 * d, "i8": lambda d: 4 + d}[model.tables]
    return {
        "codes": 16 * m * -(-n // 32),
        "list_offsets": 8 * (nlist + 1),
        "router": nlist * row(d),
        "coarse": nlist * row(d),
        "rotation": 0 if model.codes == "additive" else 4 * m * dsub * d,
        "codewords": m * 16 * row(dsub),
        "doc_codewords": 4 * m * 16 * dsub,
        "doc_space": 4 * d * d if model.codes == "additive" else 0,
        "mean": 4 * d,
        "rows": 8 * n,
    }


models = st.builds(
    lambda nlist, half, kind: IvfPqConfig(nlist=nlist, m=2 * half, codes=kind[0], tables=kind[1]),
    st.integers(1, 5000),
    st.integers(1, 128),
    st.sampled_from([("pq", "f32"), ("additive", "f32"), ("additive", "f16"), ("additive", "i8")]),
)


@given(n=st.integers(1, 10**7), d=st.integers(1, 3000), model=models)
def test_bytes_are_those_of_the_format(n: int, d: int, model: IvfPqConfig) -> None:
    sizes = sizes_by_hand(n, d, model)
    resident = sum(size for kind, size in sizes.items() if kind in RESIDENT)
    assert cost.resident_bytes(n, d, model) == resident
    assert cost.fixed_bytes(d, model) == resident - sizes["codes"]


@pytest.mark.parametrize(
    ("dense", "ids", "payloads"),
    [
        ("none", "rows", []),
        ("f16", "rows", [2 * 31_929 * 384]),
        ("f32", "int64", [4 * 31_929 * 384, 8 * 31_929]),
        ("bf16", "rows", [2 * 31_929 * 384]),
        ("i8", "rows", [31_929 * 388]),
    ],
)
def test_disk_bytes_add_a_header_page_and_padding_to_each_file(dense: str, ids: str, payloads: list[int]) -> None:
    result = plan(FACTS, "32B/vec", dense=dense, ids_kind=ids)
    fixed = [size for size in sizes_by_hand(FACTS.n, FACTS.dim, result.model).values() if size]
    fixed += 2 * [8 * FACTS.n]  # external ids sorted, and their places
    assert result.disk_bytes == sum(4096 + -(-size // 4096) * 4096 for size in fixed + payloads)


def test_disk_bytes_are_unknown_with_string_ids() -> None:
    assert plan(FACTS, ids_kind="str").disk_bytes is None


@pytest.mark.parametrize(("codes", "tables"), [("pq", 8 * 8 + 16 * 8), ("additive", 4 * 16 * 8)])
def test_query_work_counts_codes_and_products(codes: str, tables: int) -> None:
    work = cost.query_work(1000, 8, IvfPqConfig(nlist=10, m=4, codes=codes), nprobe=3)
    assert (work.codes, work.code_bytes) == (300, 600)
    assert work.multiplications == 10 * 8 + tables
