"""Indexes in faiss find what ours find, in processes that know nothing of vqdistill; all is written, or nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

import vqdistill as vqd
from tests.interchange.support import INTEGER_IDS, NPROBE, QUERIES, REFINE, ROWS, TEXT_IDS, make_index
from vqdistill.documents.document import Document
from vqdistill.documents.store import DocumentStore
from vqdistill.errors import InvalidInput
from vqdistill.interchange.agreement import refining
from vqdistill.searcher import Searcher

K = 10
KINDS = [
    ("ip", False, 4),
    ("cosine", False, 8),
    ("l2", False, 4),
    ("l2", False, 8),
    ("ip", True, 4),
    ("cosine", True, 4),
]
CASES = [(*kind, refine) for kind, refine in product(KINDS, [True, False])]
FACTS = """
import sys, json, faiss, numpy as np
path, queries, nprobe, factor, flags = sys.argv[1], np.load(sys.argv[2]), *map(int, sys.argv[3:6])
index = faiss.read_index(path, flags)
faiss.extract_index_ivf(index).nprobe = nprobe
part = faiss.downcast_index(index)
while factor and not isinstance(part, faiss.IndexRefine):
    part = faiss.downcast_index(part.index)
if factor:
    part.k_factor = factor
scores, ids = index.search(queries, 10)
assert "vqdistill" not in sys.modules
print(json.dumps([scores.tolist(), ids.tolist()]))
"""


def search_alone(path: Path, refine: int = REFINE, flags: int = 0) -> tuple[Any, Any]:
    """Search a faiss index in a process that has faiss and NumPy only."""
    queries = path.with_name("queries.npy")
    np.save(queries, QUERIES)
    arguments = [str(path), str(queries), str(NPROBE), str(refine // K), str(flags)]
    done = subprocess.run([sys.executable, "-c", FACTS, *arguments], capture_output=True, text=True, check=True)
    scores, ids = json.loads(done.stdout)
    return np.array(scores), np.array(ids)


def search_here(index: faiss.Index, refine: int = REFINE) -> tuple[Any, Any]:
    faiss.extract_index_ivf(index).nprobe = NPROBE
    if refine:
        refining(index).k_factor = refine / K
    return index.search(QUERIES, K)


def require_equal(searcher: Searcher, theirs: tuple[Any, Any], refine: int = REFINE, least: float = 1.0) -> None:
    """At least this share of (query, rank) pairs has the same id, and scores agree where it has."""
    hits = searcher.search(QUERIES, K, nprobe=NPROBE, refine=refine)
    scores, ids = theirs
    same = ids == hits.ids
    assert same.mean() >= least
    signed = -scores if searcher.reader.manifest.metric.value == "l2" else scores  # where faiss gives distances
    np.testing.assert_allclose(signed[same], hits.scores[same], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("metric", "additive", "nbits", "refine"), CASES)
def test_faiss_finds_the_same_in_a_process_of_its_own(
    metric: str, additive: bool, nbits: int, refine: bool, tmp_path: Path
) -> None:
    searcher = make_index(tmp_path / "x.vqd", metric, additive=additive)
    out = tmp_path / "x.faiss"
    report = vqd.export_index(tmp_path / "x.vqd", out, to="faiss", nbits=nbits, refine=refine, fast_scan=False)
    candidates = REFINE if refine else 0
    require_equal(searcher, search_alone(out, candidates), candidates)
    assert report == {"target": "faiss", "out": str(out), "rows": len(ROWS), "bytes": out.stat().st_size} | {
        "layout": "file",
        "agreement": 1.0,
    }


@pytest.mark.parametrize("additive", [False, True])
def test_the_order_of_lists_and_their_part_of_a_score_are_two_things(additive: bool, tmp_path: Path) -> None:
    """An index of `coarse` alone would visit other lists; one of `router` alone would score otherwise."""
    model = make_index(tmp_path / "x.vqd", "ip", additive=additive).reader.model
    best = [np.argsort(-(QUERIES @ table.T), axis=1)[:, :NPROBE] for table in (model.router, model.coarse)]
    assert (np.sort(best[0]) != np.sort(best[1])).any()
    vqd.export_index(tmp_path / "x.vqd", tmp_path / "x.faiss", to="faiss", refine=False)
    index = faiss.read_index(str(tmp_path / "x.faiss"))
    ivf = faiss.extract_index_ivf(index)
    turned = QUERIES if additive else np.ascontiguousarray(QUERIES @ model.rotation.T)
    _, lists = ivf.quantizer.search(turned, NPROBE)
    assert (np.sort(lists) == np.sort(best[0])).all()


@pytest.mark.parametrize("flags", [faiss.IO_FLAG_MMAP, faiss.IO_FLAG_MMAP_IFC])
@pytest.mark.parametrize("options", [{}, {"refine": False, "fast_scan": False}])
def test_files_open_as_maps(options: dict[str, Any], flags: int, tmp_path: Path) -> None:
    searcher = make_index(tmp_path / "x.vqd", "cosine", additive=True)
    vqd.export_index(tmp_path / "x.vqd", tmp_path / "x.faiss", to="faiss", **options)
    candidates = REFINE if options.get("refine", True) else 0
    require_equal(searcher, search_alone(tmp_path / "x.faiss", candidates, flags), candidates)


@pytest.mark.parametrize(("metric", "additive"), [("ip", False), ("cosine", True), ("l2", False)])
def test_fast_scan_finds_the_same_candidates_but_for_rounded_tables(
    metric: str, additive: bool, tmp_path: Path
) -> None:
    searcher = make_index(tmp_path / "x.vqd", metric, additive=additive)
    vqd.export_index(tmp_path / "x.vqd", tmp_path / "x.faiss", to="faiss")
    index = faiss.read_index(str(tmp_path / "x.faiss"))
    assert "FastScan" in type(faiss.downcast_index(faiss.extract_index_ivf(index))).__name__
    require_equal(searcher, search_here(index), least=0.99)


@pytest.mark.parametrize("dense", ["f16", "bf16", "i8"])
def test_dense_rows_of_every_encoding_verify(dense: str, tmp_path: Path) -> None:
    searcher = make_index(tmp_path / "x.vqd", "cosine", additive=True, dense=dense)
    vqd.export_index(tmp_path / "x.vqd", tmp_path / "x.faiss", to="faiss")
    # Bytes with a scale become float16, which may exchange neighbours that are as good as equal.
    require_equal(searcher, search_alone(tmp_path / "x.faiss"), least=0.98 if dense == "i8" else 1.0)


def test_without_dense_rows_codes_alone_are_written(tmp_path: Path) -> None:
    searcher = make_index(tmp_path / "x.vqd", "ip", dense="none")
    vqd.export_index(tmp_path / "x.vqd", tmp_path / "x.faiss", to="faiss", fast_scan=False)
    require_equal(searcher, search_alone(tmp_path / "x.faiss", 0), 0)
    with pytest.raises(InvalidInput, match="refine needs an index with dense rows, got one with dense=none"):
        vqd.export_index(tmp_path / "x.vqd", tmp_path / "y.faiss", to="faiss", refine=True)


def test_added_rows_go_along_and_deleted_ones_do_not(tmp_path: Path) -> None:
    searcher = make_index(tmp_path / "x.vqd", "ip", additive=True)
    searcher.add(ROWS[:200] + 0.1, np.arange(10_000, 10_200))
    searcher.delete([*INTEGER_IDS[:300], *range(10_150, 10_200)])
    report = vqd.export_index(tmp_path / "x.vqd", tmp_path / "x.faiss", to="faiss")
    assert report["rows"] == len(ROWS) - 150
    require_equal(searcher, search_alone(tmp_path / "x.faiss"))


@pytest.mark.parametrize("metric", ["ip", "cosine"])
@pytest.mark.parametrize("refine", [True, False])
def test_linear_adapters_go_along(metric: str, refine: bool, tmp_path: Path) -> None:
    searcher = make_index(tmp_path / "x.vqd", metric, additive=True, units=4)
    vqd.export_index(tmp_path / "x.vqd", tmp_path / "x.faiss", to="faiss", refine=refine, fast_scan=False)
    candidates = REFINE if refine else 0
    require_equal(searcher, search_alone(tmp_path / "x.faiss", candidates), candidates)


def test_adapters_with_hidden_units_are_refused_or_left_out_at_a_price_that_is_told(tmp_path: Path) -> None:
    make_index(tmp_path / "x.vqd", "cosine", additive=True, units=4, linear=False)
    wanted = "faiss has linear transforms of queries only, got an adapter with 2 hidden units; without adapters"
    with pytest.raises(InvalidInput, match=wanted):
        vqd.export_index(tmp_path / "x.vqd", tmp_path / "x.faiss", to="faiss")
    report = vqd.export_index(tmp_path / "x.vqd", tmp_path / "x.faiss", to="faiss", adapters=False)
    assert 0.1 < report["agreement"] < 0.99


def test_text_ids_want_numbers_or_a_layout(tmp_path: Path) -> None:
    searcher = make_index(tmp_path / "x.vqd", "ip", ids=TEXT_IDS)
    with pytest.raises(InvalidInput, match="ids of a faiss index are integers, got an index with strings"):
        vqd.export_index(tmp_path / "x.vqd", tmp_path / "x.faiss", to="faiss")
    vqd.export_index(tmp_path / "x.vqd", tmp_path / "x", to="faiss", layout="pyserini")
    scores, places = search_alone(tmp_path / "x" / "index")
    lines = np.array((tmp_path / "x" / "docid").read_text().splitlines())
    assert len(lines) == len(ROWS)
    require_equal(searcher, (scores, lines[places]))


def test_haystack_reads_documents_and_their_numbers(tmp_path: Path) -> None:
    searcher = make_index(tmp_path / "x.vqd", "ip", ids=TEXT_IDS)
    lines = [json.dumps({"_id": key, "text": f"text of {key}", "page": row}) for row, key in enumerate(TEXT_IDS)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    options = {"layout": "haystack", "documents": tmp_path / "texts.jsonl"}
    vqd.export_index(tmp_path / "x.vqd", tmp_path / "x", to="faiss", **options)
    scores, places = search_alone(tmp_path / "x" / "index.faiss")
    stored = json.loads((tmp_path / "x" / "index.json").read_text())
    ids = np.array([[stored["id_map"][str(place)] for place in row] for row in places])
    require_equal(searcher, (scores, ids))
    assert stored["next_id"] == len(ROWS)
    assert all(stored["inverse_id_map"][key] == int(place) for place, key in stored["id_map"].items())
    assert {document["id"]: document for document in stored["documents"]}[TEXT_IDS[7]] == {
        "id": TEXT_IDS[7],
        "content": f"text of {TEXT_IDS[7]}",
        "meta": {"page": 7},
    }


def test_langchain_loads_its_directory(tmp_path: Path) -> None:
    faiss_store = pytest.importorskip(
        "langchain_community.vectorstores.faiss", reason="langchain-community: pip install 'vqdistill[langchain-faiss]'"
    )
    searcher = make_index(tmp_path / "x.vqd", "ip", ids=TEXT_IDS)
    vqd.export_index(tmp_path / "x.vqd", tmp_path / "x", to="faiss", layout="langchain")
    store = faiss_store.FAISS.load_local(
        str(tmp_path / "x"), lambda text: QUERIES[int(text)].tolist(), allow_dangerous_deserialization=True
    )
    search_here(store.index)  # sets the lists and candidates to be searched
    found = [[document.id for document in store.similarity_search(str(query), k=K)] for query in range(len(QUERIES))]
    assert (np.array(found) == searcher.search(QUERIES, K, nprobe=NPROBE, refine=REFINE).ids).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"to": "milvus"}, "target must be one of faiss, lance, scann, numpy, safetensors, got 'milvus'"),
        ({"to": "faiss", "layout": "tar"}, "layout must be one of file, pyserini, langchain, haystack, got 'tar'"),
        ({"to": "faiss", "rows": False}, "options of the target faiss are adapters, .*, got rows"),
        ({"to": "numpy", "nbits": 8}, "options of the target numpy are rows, got nbits"),
        ({"to": "lance", "rows": True}, "options of the target lance are none, got rows"),
        ({"to": "faiss", "colour": 1}, "options of an export are layout, .*, got colour"),
        ({"to": "faiss", "nbits": 5}, "nbits must be 4, or 8 for product codes without fast_scan, got 5"),
        (
            {"to": "faiss", "nbits": 8, "fast_scan": True},
            "nbits must be 4, or 8 for product codes without fast_scan, got 8",
        ),
        ({"to": "faiss", "documents": "x"}, "documents are for the layouts langchain and haystack, got layout 'file'"),
        ({"to": "faiss", "layout": "haystack", "documents": "none"}, "none cannot be read: No such file or directory"),
    ],
)
def test_bad_options_leave_nothing(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    make_index(tmp_path / "x.vqd")
    with pytest.raises(InvalidInput, match=sentence):
        vqd.export_index(tmp_path / "x.vqd", tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["x.vqd"]


@pytest.mark.parametrize("line", ["[1]", "no JSON", '{"id": 1}', '{"id": true, "text": ""}', '{"id": "a", "text": 1}'])
def test_bad_documents_leave_nothing(line: str, tmp_path: Path) -> None:
    make_index(tmp_path / "x.vqd")
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"id": "a", "text": ""}\n' + line)
    with pytest.raises(InvalidInput, match=r"texts.jsonl, line 2 must "):
        vqd.export_index(tmp_path / "x.vqd", tmp_path / "out", to="faiss", layout="haystack", documents=texts)
    assert {path.name for path in tmp_path.iterdir()} == {"x.vqd", "texts.jsonl"}


def test_texts_come_from_a_document_store_as_well(tmp_path: Path) -> None:
    make_index(tmp_path / "x.vqd")
    key = int(INTEGER_IDS[7])
    with DocumentStore(tmp_path / "texts.sqlite3", "int64") as store:
        store.put([Document(key, "seven", {"page": 7})])
    options = {"layout": "haystack", "documents": tmp_path / "texts.sqlite3"}
    vqd.export_index(tmp_path / "x.vqd", tmp_path / "x", to="faiss", **options)
    documents = json.loads((tmp_path / "x" / "index.json").read_text())["documents"]
    texts = [document for document in documents if document["content"]]
    assert texts == [{"id": str(key), "content": "seven", "meta": {"page": 7}}] and len(documents) == len(ROWS)


@pytest.mark.parametrize("key", ["two\nlines", " blank", "next\x85line"])
def test_ids_that_are_no_line_are_refused_by_pyserini_alone(key: str, tmp_path: Path) -> None:
    make_index(tmp_path / "x.vqd", ids=[key, *TEXT_IDS[1:]])
    with pytest.raises(InvalidInput, match="ids must be one line each, without blanks around, got"):
        vqd.export_index(tmp_path / "x.vqd", tmp_path / "out", to="faiss", layout="pyserini")
    assert [path.name for path in tmp_path.iterdir()] == ["x.vqd"]
    vqd.export_index(tmp_path / "x.vqd", tmp_path / "out", to="faiss", layout="haystack")


def test_what_is_there_is_never_replaced(tmp_path: Path) -> None:
    make_index(tmp_path / "x.vqd")
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(InvalidInput, match="output .*out must not exist, in a directory that does"):
        vqd.export_index(tmp_path / "x.vqd", out, to="faiss")
    assert out.read_text() == "mine"
