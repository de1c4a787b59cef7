"""The LlamaIndex adapter: nodes come back whole, filters mean what LlamaIndex's own store means, indexes run on it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_index.core", reason="pip install 'vqdistill[llamaindex]'")

from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from vqdistill.errors import InvalidInput
from vqdistill.integrations.llamaindex import VqdistillLlamaStore
from vqdistill.integrations.options import StoreOptions

D = 8
ROWS = np.random.default_rng(0).standard_normal((300, D)).astype(np.float32)


def node(i: int) -> TextNode:
    notes: dict[str, Any] = {"i": i, "tags": ["all", f"t{i % 3}"], "name.first": f"n{i % 4}", "blank": ""}
    if i % 2:
        notes["odd"] = True
    return TextNode(
        id_=f"n{i}",
        text=f"text {i}",
        metadata=notes,
        embedding=ROWS[i].tolist(),
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"doc{i % 5}")},
    )


@pytest.fixture(scope="module", params=[20, 300], ids=["exact", "indexed"])
def template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VqdistillLlamaStore]:
    """A store that tests only read."""
    path = tmp_path_factory.mktemp("llamaindex") / "store"
    made = VqdistillLlamaStore(path, StoreOptions(compile_at=256, distill=False))
    assert made.add([node(i) for i in range(request.param)]) == [f"n{i}" for i in range(request.param)]
    assert (made.client.index is None) == (request.param == 20)
    yield made
    made.client.close()


@pytest.fixture
def store(tmp_path: Path, template: VqdistillLlamaStore) -> Iterator[VqdistillLlamaStore]:
    """A copy that a test may change."""
    shutil.copytree(template.client.path, tmp_path / "store")
    made = VqdistillLlamaStore(tmp_path / "store")
    yield made
    made.client.close()


def query(i: int, k: int = 5, **options: Any) -> VectorStoreQuery:
    return VectorStoreQuery(query_embedding=ROWS[i].tolist(), similarity_top_k=k, **options)


def test_nodes_come_back_whole(store: VqdistillLlamaStore) -> None:
    found = store.query(query(3, 2))
    assert found.ids is not None and found.nodes is not None and found.similarities is not None
    assert found.ids[0] == "n3" and found.similarities[0] == pytest.approx(1)
    back, wanted = found.nodes[0], node(3)
    assert (back.node_id, back.get_content(), back.ref_doc_id) == ("n3", "text 3", "doc3")
    assert {name: back.metadata[name] for name in wanted.metadata} == wanted.metadata
    assert [one.node_id for one in store.get_nodes(["n4", "nobody", "n2"])] == ["n4", "n2"]


FILTERS = [
    ("i", FilterOperator.EQ, 3),
    ("i", FilterOperator.NE, 3),
    ("i", FilterOperator.GT, 10),
    ("i", FilterOperator.LTE, 10),
    ("i", FilterOperator.IN, [1, 2, 99]),
    ("i", FilterOperator.NIN, [1, 2, 99]),
    ("tags", FilterOperator.CONTAINS, "t1"),
    ("tags", FilterOperator.ANY, ["t1", "t2"]),
    ("tags", FilterOperator.ALL, ["all", "t2"]),
    ("name.first", FilterOperator.TEXT_MATCH, "2"),
    ("name.first", FilterOperator.EQ, "n1"),
    ("blank", FilterOperator.IS_EMPTY, None),
    ("odd", FilterOperator.IS_EMPTY, None),
    ("odd", FilterOperator.NE, 7),
]


@pytest.mark.parametrize("condition", list(FilterCondition))
@pytest.mark.parametrize("at", range(len(FILTERS)))
def test_filters_mean_what_llamaindex_means(template: VqdistillLlamaStore, at: int, condition: FilterCondition) -> None:
    parts = [MetadataFilter(key=k, operator=o, value=v) for k, o, v in (FILTERS[at], FILTERS[at - 1])]
    filters = MetadataFilters(filters=parts, condition=condition)
    notes = {f"n{i}": node(i).metadata for i in range(len(template.client))}
    passes = build_metadata_filter_fn(lambda key: notes[key], filters)
    wanted = {key for key in notes if passes(key)}
    assert {one.node_id for one in template.get_nodes(filters=filters)} == wanted
    found = template.query(query(0, 300, filters=filters)).ids
    assert found is not None and set(found) == wanted and len(found) == len(wanted)


def test_queries_may_name_nodes_and_documents(store: VqdistillLlamaStore) -> None:
    assert set(store.query(query(0, 9, node_ids=["n1", "n2"])).ids or ()) == {"n1", "n2"}
    found = store.query(query(0, 300, doc_ids=["doc1"])).nodes or ()
    assert len(found) == len(store.client) // 5 and {one.ref_doc_id for one in found} == {"doc1"}


def test_nodes_are_deleted_by_document_id_and_filter(store: VqdistillLlamaStore) -> None:
    n = len(store.client)
    store.delete("doc2")
    assert len(store.client) == n - n // 5
    store.delete_nodes(["n1", "n3"])
    odd = MetadataFilters(filters=[MetadataFilter(key="odd", value=7, operator=FilterOperator.NE)])
    store.delete_nodes(["n0", "n4"], odd)
    assert not {"n0", "n1", "n2", "n3", "n4"} & set(store.query(query(0, 300)).ids or ())
    store.clear()
    assert store.query(query(0)).ids == [] and len(store.client) == 0


def test_variety_prefers_what_is_unlike_the_first(store: VqdistillLlamaStore) -> None:
    twins = [TextNode(id_=f"twin{i}", text="", embedding=ROWS[3].tolist()) for i in range(3)]
    store.add(twins)
    alike = store.query(query(3, 3)).ids or ()
    varied = store.query(query(3, 3, mode=VectorStoreQueryMode.MMR, mmr_threshold=0.2)).ids or ()
    same = {"n3", "twin0", "twin1", "twin2"}
    assert set(alike) <= same and len(set(varied) & same) == 1


def test_a_store_is_opened_from_its_path(store: VqdistillLlamaStore, tmp_path: Path) -> None:
    store.persist("elsewhere")
    again = VqdistillLlamaStore.from_path(tmp_path / "store")
    assert again.query(query(7, 1)).ids == ["n7"]
    again.client.close()
    with pytest.raises(InvalidInput, match=r"^.*nowhere must be the folder of a store, got none there$"):
        VqdistillLlamaStore.from_path(tmp_path / "nowhere")


def test_an_index_of_llamaindex_runs_on_it(tmp_path: Path) -> None:
    made = VqdistillLlamaStore(tmp_path / "store")
    nodes = [TextNode(id_=f"n{i}", text=f"text {i}", metadata={"i": i}) for i in range(5)]
    context = StorageContext.from_defaults(vector_store=made)
    index = VectorStoreIndex(nodes, storage_context=context, embed_model=MockEmbedding(embed_dim=D))
    filters = MetadataFilters(filters=[MetadataFilter(key="i", value=2, operator=FilterOperator.GTE)])
    retriever = index.as_retriever(similarity_top_k=9, filters=filters)
    assert {found.node.node_id for found in retriever.retrieve("any")} == {"n2", "n3", "n4"}
    assert {found.node.node_id for found in asyncio.run(retriever.aretrieve("any"))} == {"n2", "n3", "n4"}
    index.delete_nodes(["n3"])
    assert len(made.client) == 4
    made.client.close()


def test_what_cannot_be_had_is_said(store: VqdistillLlamaStore) -> None:
    with pytest.raises(InvalidInput, match="^query_embedding must be a vector, got None$"):
        store.query(VectorStoreQuery())
    with pytest.raises(InvalidInput, match="^mode must be one of default, mmr, got 'hybrid'$"):
        store.query(query(0, mode=VectorStoreQueryMode.HYBRID))
    unlike = MetadataFilter(key="i", value="x", operator=FilterOperator.TEXT_MATCH_INSENSITIVE)
    with pytest.raises(InvalidInput, match="^filter on i must have another operator than text_match_insensitive$"):
        store.query(query(0, filters=MetadataFilters(filters=[unlike])))
