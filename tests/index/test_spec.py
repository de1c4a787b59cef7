"""The manifest parser against hostile input: our exceptions only, and nothing is accepted that was not written."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.index.support import leaves, make_sample, smallest_manifest, write_sample
from vqdistill.errors import CorruptIndex, FormatTooNew, FormatTooOld
from vqdistill.index.manifest import Manifest
from vqdistill.index.manifest_parts import AdapterShape
from vqdistill.index.policy import SearchPolicy
from vqdistill.index.spec import PAGE, Layout, Segment, check_header, encode_current, pack_header, parse_current
from vqdistill.types import Metric

NAME = "manifest-1.json"
REFUSALS = (CorruptIndex, FormatTooNew, FormatTooOld)
HOSTILE: list[Any] = [
    None, True, False, -1, 0, 1, 3, 2**31, 2**63, 2**64, 10**19, -(2**63), 1.0, 1.5, 1e308, "", "x", "1", "../x", "f32",
    [], [[]], [0], [1, 2, 3, 4, 5], [-1], [1.0], [True], {}, {"file": "x"}, "codes-2.seg", "dense-1.seg",
    "codes-01.seg", "/codes-1.seg", "a/codes-1.seg", "codes-1.seg\n", "codes-1.seg\0", "\u0660", "x" * 10_000,
]  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_sample(tmp_path_factory.mktemp("spec") / "x.vqd", make_sample())


@pytest.fixture(scope="module")
def doc(manifest: Manifest) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(manifest.to_bytes())
    return loaded


def encode(doc: Any) -> bytes:
    return json.dumps(doc).encode()


def copy_with(doc: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    out = dict(doc) if isinstance(doc, dict) else list(doc)
    out[place[0]] = copy_with(doc[place[0]], place[1:], value)
    return out


def parsed_or_refused(data: bytes) -> Manifest | None:
    try:
        return Manifest.parse(data, NAME)
    except REFUSALS as error:
        assert str(error).startswith(NAME) and "\n" not in str(error) and len(str(error)) < 400
        return None


def test_manifest_to_bytes_and_back(manifest: Manifest) -> None:
    data = manifest.to_bytes()
    assert Manifest.parse(data, NAME) == manifest
    assert Manifest.parse(data, NAME).to_bytes() == data
    assert Manifest.parse(json.dumps(json.loads(data), indent=4).encode(), NAME) == manifest
    assert smallest_manifest() == Manifest.parse(smallest_manifest().to_bytes(), NAME)


def test_every_value_replaced_by_every_hostile_one(manifest: Manifest, doc: dict[str, Any]) -> None:
    """What is accepted is the same manifest, or differs only where any value is good."""
    free = {"plan", "report", "search", "index_id", "residual", "metric", "model_id", "next_row", "drift"}
    for place in leaves(doc):
        for value in HOSTILE:
            got = parsed_or_refused(encode(copy_with(doc, place, value)))
            if got is not None and place[0] not in free and "crc32" not in place:
                assert got == manifest, (place, value)


def test_every_key_removed_renamed_and_added(doc: dict[str, Any]) -> None:
    for place in [(), *leaves(doc)]:
        node = doc
        for key in place:
            node = node[key]
        if isinstance(node, dict) and place[:1] not in [("plan",), ("report",)]:
            for changed in [{**node, "surprise": 1}, *({k: v for k, v in node.items() if k != key} for key in node)]:
                assert parsed_or_refused(encode(copy_with(doc, place, changed))) is None, place


@given(data=st.data(), value=json_values)
@settings(max_examples=300, deadline=None)
def test_random_values_in_random_places(
    manifest: Manifest, doc: dict[str, Any], data: st.DataObject, value: Any
) -> None:
    place = data.draw(st.sampled_from(leaves(doc)))
    got = parsed_or_refused(encode(copy_with(doc, place, value)))
    assert got is None or Manifest.parse(got.to_bytes(), NAME) == got


@given(data=st.binary(max_size=200) | json_values.map(encode))
@settings(max_examples=300, deadline=None)
def test_random_bytes(data: bytes) -> None:
    assert parsed_or_refused(data) is None


@given(data=st.binary(max_size=64) | st.text(max_size=40).map(lambda text: text.encode()))
def test_random_current(data: bytes) -> None:
    try:
        name, crc = parse_current(data)
    except CorruptIndex as error:
        assert str(error).startswith("CURRENT must be")
    else:
        assert f"{name} {crc:08x}\n".encode() == data


@pytest.mark.parametrize(
    "name",
    [
        "manifest-0.json",
        "manifest-01.json",
        "../manifest-1.json",
        "manifest-1.json ",
        "manifest-9999999999.json",
        "x.json",
    ],
)
def test_current_names_a_plain_manifest(name: str) -> None:
    with pytest.raises(CorruptIndex):
        parse_current(encode_current(name, b"x"))


HOSTILE_TEXTS = {
    "deep lists": b"[" * 500_000,
    "deep and closed": b"[" * 5000 + b"]" * 5000,
    "just too deep": b'{"plan":' * 64 + b"{}" + b"}" * 64,
    "deep objects": b'{"a":' * 500_000,
    "long integer": b'{"n": ' + b"9" * 5000 + b"}",
    "21 digits": b'{"n": 123456789012345678901}',
    "infinite float": b'{"n": 1e999}',
    "NaN": b'{"n": NaN}',
    "Infinity": b'{"n": -Infinity}',
    "repeated key": b'{"n": 1, "n": 1}',
    "UTF-16": '{"n": 1}'.encode("utf-16"),
    "BOM": b'\xef\xbb\xbf{"n": 1}',
    "bad UTF-8": b'{"n": "\xff"}',
    "surrogate": b'{"n": "\\ud800"}',
    "surrogate key": b'{"\\udfff": 1}',
    "empty": b"",
    "two documents": b"{}{}",
    "list": b"[]",
    "null": b"null",
    "NUL": b"\0",
}


@pytest.mark.parametrize("data", HOSTILE_TEXTS.values(), ids=HOSTILE_TEXTS.keys())
def test_hostile_json(data: bytes) -> None:
    assert parsed_or_refused(data) is None


def test_hostile_json_inside_what_is_opaque(doc: dict[str, Any]) -> None:
    text = encode(copy_with(doc, ("plan",), {"x": "HERE"})).decode()
    for value in ["1e999", "NaN", "9" * 30, '"\\ud800"', "[" * 100 + "]" * 100, '{"a":1,"a":1}']:
        assert parsed_or_refused(text.replace('"HERE"', value).encode()) is None, value
    assert parsed_or_refused(text.replace('"HERE"', "[" * 50 + "]" * 50).encode()) is not None


def test_messages_name_file_place_got_and_wanted(doc: dict[str, Any]) -> None:
    for place, value, message in [
        (("n",), -1, "manifest-1.json: n must be an integer in 1..1099511627776, got -1"),
        (("metric",), "dot", "manifest-1.json: metric must be one of ip, cosine, l2, got 'dot'"),
        (("m",), 3, "manifest-1.json: m must be even, got 3"),
        (("d_out",), 9, "manifest-1.json: d_out must be 8, m * dsub for pq codes and 0 for additive ones, got 9"),
        (("residual",), 1, "manifest-1.json: residual must be true or false, got 1"),
        (("generation",), 2, "manifest-1.json: generation must be the number in the file name, got 2"),
        (("index_id",), "00", "manifest-1.json: index_id must be 32 lower-case hex digits, got '00'"),
        (("plan",), [], "manifest-1.json: plan must be a JSON object, got []"),
        (("tables",), "f64", "manifest-1.json: tables must be one of f32, f16, i8, got 'f64'"),
        (("tables",), "f16", "manifest-1.json: tables must be 'f32' for pq codes, got 'f16'"),
        (("dense",), "f64", "manifest-1.json: dense must be one of f32, f16, bf16, i8, none, got 'f64'"),
        (("search", "nprobe"), 5, "manifest-1.json: search.nprobe must be an integer in 1..4, got 5"),
        (
            ("segments", "codes", "file"),
            "../codes-1.seg",
            "manifest-1.json: segments.codes.file must be codes-<generation>.seg of a generation up to 1, "
            "got '../codes-1.seg'",
        ),
        (("segments", "codes", "dtype"), "f4", "manifest-1.json: segments.codes.dtype must be 'u1', got 'f4'"),
        (("segments", "codes", "shape"), [3], "manifest-1.json: segments.codes.shape must be [3, 2, 32], got [3]"),
        (
            ("segments", "codes", "bytes"),
            191,
            "manifest-1.json: segments.codes.bytes must be 192, which is what the shape takes, got 191",
        ),
        (("segments", "codes", "resident"), False, "manifest-1.json: segments.codes.resident must be true, got False"),
        (
            ("segments", "codes", "crc32"),
            [1, 2],
            "manifest-1.json: segments.codes.crc32 must be a list of 1 integers below 2^32, got [1, 2]",
        ),
    ]:
        with pytest.raises(CorruptIndex) as caught:
            Manifest.parse(encode(copy_with(doc, place, value)), NAME)
        assert str(caught.value) == message


def test_residuals_have_no_l2_score(doc: dict[str, Any]) -> None:
    with pytest.raises(CorruptIndex, match="residual must be false under metric l2, got True"):
        Manifest.parse(encode({**doc, "residual": True, "metric": "l2"}), NAME)


def test_additive_codes_have_no_rotation_and_full_codewords() -> None:
    manifest = smallest_manifest()
    layout = Layout(n=1, d=1, nlist=1, m=2, dsub=1, dense="none", ids="rows", codes="additive")
    segments = {kind: replace(segment, crc32=(7,)) for kind, segment in layout.segments().items()}
    good = replace(manifest, metric=Metric.IP, codes="additive", segments=segments)
    assert Manifest.parse(good.to_bytes(), NAME) == good and good.d_out == 0 and "rotation" not in segments
    for change, message in [
        ({"codes": "pq"}, "d_out must be 2"),
        ({"metric": "l2"}, "codes must be 'pq' under metric l2, got 'additive'"),
        ({"dsub": 2}, "dsub must be d = 1 for additive codes, got 2"),
        ({"codes": "rq"}, "codes must be one of pq, additive, got 'rq'"),
    ]:
        with pytest.raises(CorruptIndex, match=message):
            Manifest.parse(encode({**json.loads(good.to_bytes()), **change}), NAME)


def test_half_tables_of_additive_codes() -> None:
    layout = Layout(n=1, d=1, nlist=1, m=2, dsub=1, dense="none", ids="rows", codes="additive", tables="f16")
    segments = {kind: replace(segment, crc32=(7,)) for kind, segment in layout.segments().items()}
    good = replace(smallest_manifest(), metric=Metric.IP, codes="additive", tables="f16", segments=segments)
    assert Manifest.parse(good.to_bytes(), NAME) == good
    halves = {kind for kind, segment in segments.items() if segment.dtype == "f2"}
    assert halves == {"router", "coarse", "codewords"}
    with pytest.raises(CorruptIndex, match="segments.router.dtype must be 'f4', got 'f2'"):
        Manifest.parse(encode({**json.loads(good.to_bytes()), "tables": "f32"}), NAME)


SINCE_4 = ("certificate", "model_id", "next_row", "deleted", "drift", "added")


def _without_tables(doc: dict[str, Any]) -> dict[str, Any]:
    """Without the tables of ids, which came with version 4."""
    return doc | {"segments": {key: value for key, value in doc["segments"].items() if not key.startswith("id_")}}


def test_a_manifest_of_version_1(doc: dict[str, Any]) -> None:
    """It has no tables, which are float32, and of the search two numbers."""
    old = {key: value for key, value in _without_tables(doc).items() if key not in ("tables", "adapters", *SINCE_4)}
    old |= {"version": 1, "search": {"nprobe": 2, "refine": 7}}
    manifest = Manifest.parse(encode(old), NAME)
    assert (manifest.version, manifest.tables, manifest.search) == (1, "f32", SearchPolicy(nprobe=2, refine=7))
    for wrong in (doc | {"version": 1}, old | {"tables": "f32"}, old | {"search": doc["search"]}, old | {"version": 2}):
        with pytest.raises(CorruptIndex, match="unknown keys|lacks the keys"):
            Manifest.parse(encode(wrong), NAME)
    for version in (5, 10**9):
        with pytest.raises(FormatTooNew, match=f"version {version} is newer than this reader; .* versions 1 to 4"):
            Manifest.parse(encode(old | {"version": version}), NAME)


def test_a_manifest_of_version_2(doc: dict[str, Any]) -> None:
    """It has no adapters."""
    old = {key: value for key, value in _without_tables(doc).items() if key not in ("adapters", *SINCE_4)} | {
        "version": 2
    }
    manifest = Manifest.parse(encode(old), NAME)
    assert (manifest.version, manifest.adapters, manifest.tables) == (2, {}, doc["tables"])
    for wrong in (doc | {"version": 2}, old | {"version": 3}):
        with pytest.raises(CorruptIndex, match="unknown keys|lacks the keys"):
            Manifest.parse(encode(wrong), NAME)


def test_a_manifest_of_version_3(doc: dict[str, Any]) -> None:
    """It has no certificate, and one set of rows."""
    old = {key: value for key, value in _without_tables(doc).items() if key not in SINCE_4} | {"version": 3}
    manifest = Manifest.parse(encode(old), NAME)
    assert (manifest.version, manifest.certificate) == (3, None)
    for wrong in (doc | {"version": 3}, old | {"version": 4}):
        with pytest.raises(CorruptIndex, match="unknown keys|lacks the keys"):
            Manifest.parse(encode(wrong), NAME)


def adapted_manifest(tables: str = "f32") -> Manifest:
    layout = Layout(
        n=1, d=3, nlist=1, m=2, dsub=3, dense="none", ids="rows", codes="additive", tables=tables, query_units=5,
        verify_units=2,
    )  # fmt: skip
    segments = {kind: replace(segment, crc32=(7,)) for kind, segment in layout.segments().items()}
    shapes = {"query": AdapterShape(units=5, rank=4), "verify": AdapterShape(units=2, rank=0)}
    values = {"d": 3, "dsub": 3, "codes": "additive", "tables": tables, "segments": segments, "adapters": shapes}
    return replace(smallest_manifest(), metric=Metric.IP, **values)


@pytest.mark.parametrize("tables", ["f32", "f16"])
def test_adapters(tables: str) -> None:
    good = adapted_manifest(tables)
    assert Manifest.parse(good.to_bytes(), NAME) == good
    table = "f2" if tables == "f16" else "f4"
    segments = {kind: good.segments[kind] for kind in good.segments if kind.startswith(("query", "verify"))}
    assert {kind: (segment.dtype, segment.shape) for kind, segment in segments.items()} == {
        "query_down": (table, (5, 3)),
        "query_bias": ("f4", (5,)),
        "query_up": (table, (3, 5)),
        "verify_down": (table, (2, 3)),
        "verify_bias": ("f4", (2,)),
        "verify_up": (table, (3, 2)),
    }
    assert all(segment.resident for segment in segments.values())
    width = 2 if tables == "f16" else 4
    plain = replace(smallest_manifest(), metric=Metric.IP, d=3)
    assert plain.adapters == {}
    assert sum(segment.bytes for segment in segments.values()) == 2 * width * 3 * 7 + 4 * 7


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ([], "adapters must be a JSON object"),
        ({"query": {"units": 5, "rank": 4}}, "segments lacks the keys .. and has the unknown keys .'verify_bias"),
        ({"query": {"units": 6, "rank": 4}, "verify": {"units": 2, "rank": 0}}, "query_down.shape must be .6, 3., got"),
        ({"query": {"units": 0, "rank": 0}}, "adapters.query.units must be an integer in 1"),
        ({"query": {"units": 2**16 + 1, "rank": 0}}, "adapters.query.units must be an integer in 1"),
        ({"query": {"units": 5, "rank": 6}}, "adapters.query.rank must be an integer in 0..5, got 6"),
        ({"query": {"units": 5, "rank": -1}}, "adapters.query.rank must be an integer in 0..5"),
        ({"query": {"units": 5.0, "rank": 1}}, "adapters.query.units must be an integer"),
        ({"query": {"units": 5}}, "adapters.query lacks the keys .'rank'."),
        (
            {"query": {"units": 5, "rank": 1, "bias": 1}},
            "adapters.query lacks .* the unknown keys .'bias'.",
        ),
        ({"route": {"units": 5, "rank": 1}}, "adapters.route must be one of the stages query, verify"),
    ],
)
def test_adapters_that_do_not_fit(adapters: Any, message: str) -> None:
    doc = json.loads(adapted_manifest().to_bytes())
    with pytest.raises(CorruptIndex, match=message):
        Manifest.parse(encode(doc | {"adapters": adapters}), NAME)


def test_a_later_generation_may_keep_earlier_segments(manifest: Manifest, doc: dict[str, Any]) -> None:
    later = Manifest.parse(encode({**doc, "generation": 3}), "manifest-3.json")
    assert later == replace(manifest, generation=3)
    doc = copy_with(doc, ("segments", "codes", "file"), "codes-3.seg")
    assert Manifest.parse(encode({**doc, "generation": 3}), "manifest-3.json").segments["codes"].generation == 3


def test_header_page() -> None:
    segment = Segment(kind="codes", file="codes-12.seg", dtype="u1", shape=(2, 3, 32), resident=True)
    page = pack_header(segment, bytes(range(16)))
    assert len(page) == PAGE and page[96 : PAGE - 4] == bytes(PAGE - 100)
    assert page[:64] == b"\x89VQD\r\n\x1a\n" + b"\4\0\0\0" + b"\x0c\0\0\0" + bytes(range(16)) + b"codes".ljust(
        16, b"\0"
    ) + b"u1\0\0" + b"\3\0\0\0" + b"\2" + bytes(7)
    check_header(page, segment, bytes(range(16)))
    old = pack_header(segment, bytes(range(16)), 1)
    assert old[8:12] == b"\1\0\0\0" and old[12:96] == page[12:96]
    check_header(old, segment, bytes(range(16)), 1)
    with pytest.raises(CorruptIndex, match="header version must be 4, got 1"):
        check_header(old, segment, bytes(range(16)))
    for other, message in [
        (replace(segment, kind="dense", file="dense-12.seg"), "header kind must be 'dense', got 'codes'"),
        (replace(segment, file="codes-1.seg"), "header generation must be 1, got 12"),
        (replace(segment, dtype="f4"), "header dtype must be 'f4', got 'u1'"),
        (replace(segment, shape=(2, 3, 31)), "header shape must be 31, got 32"),
        (replace(segment, shape=(6, 32)), "header dimensions must be 2, got 3"),
    ]:
        with pytest.raises(CorruptIndex, match=message):
            check_header(page, other, bytes(range(16)))
    with pytest.raises(CorruptIndex, match="header index id must be 0f0e0d0c0b0a09080706050403020100, got 000102"):
        check_header(page, segment, bytes(range(15, -1, -1)))


def test_values_are_frozen(manifest: Manifest) -> None:
    with pytest.raises(FrozenInstanceError):
        manifest.n = 3  # type: ignore[misc]


def test_exact_bytes_of_the_smallest_manifest() -> None:
    golden = Path(__file__).parents[1] / "golden" / "manifest-smallest.json"
    assert smallest_manifest().to_bytes() == golden.read_bytes()
