"""Bodies of requests and responses, as pydantic checks them and OpenAPI describes them."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

_VECTOR = {"type": "array", "items": {"type": "number"}, "minItems": 1}
_MATRIX = {"type": "array", "items": _VECTOR, "minItems": 1}
_ID = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
_IDS = {"type": "array", "items": _ID}

Vectors = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [_MATRIX, _VECTOR],
            "description": "(q, d) or (d,) real numbers; in msgpack also a map of dtype, shape and data.",
        }
    ),
]
Vector = Annotated[Any, WithJsonSchema(_VECTOR)]
Ids = Annotated[Any, WithJsonSchema(_IDS | {"description": "External ids, all integers or all strings."})]
Numbers = Annotated[Any, WithJsonSchema({"type": "array", "items": {"type": "array", "items": {"type": "number"}}})]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class SearchOptions(_Strict):
    """How to search; what is left out is what the index was calibrated for."""

    k: int = Field(10, ge=1, description="Results a query.")
    nprobe: int | None = Field(None, ge=1, description="Lists visited; with coverage, at most.")
    coverage: float | None = Field(None, gt=0, lt=1, description="Share of true neighbours in the visited lists.")
    refine: int | None = Field(
        None, ge=0, le=1 << 40, description="Candidates verified; 0 = none; with confidence, at most."
    )
    confidence: float | None = Field(None, gt=0, lt=1, description="Share of the results expected among those read.")
    recall: float | None = Field(None, gt=0, lt=1, description="Instead of these: what the certificate promises.")

    @cached_property
    def given(self) -> dict[str, Any]:
        """The options, for `Searcher.search`."""
        return {name: getattr(self, name) for name in SearchOptions.model_fields}


class SearchRequest(SearchOptions):
    """One query or many: vectors, or ids whose stored rows are the queries."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["queries"]}, {"required": ["ids"]}],
            "examples": [{"queries": [[0.1, -0.2, 0.3]], "k": 10}, {"ids": [17], "k": 5, "recall": 0.9}],
        }
    )

    queries: Vectors = Field(None, validate_default=False)
    ids: Ids = Field(None, description="Stored rows that are the queries.")
    allow: Ids = Field(None, description="Ids that may be found; none of the others is.")


class ExplainRequest(SearchOptions):
    """One query, and the ids that it should find."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": [0.1, -0.2, 0.3], "expected_ids": [17, 4]}]})

    query: Vector
    expected_ids: Ids


class Error(BaseModel):
    """What every refusal looks like."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"error": "k must be at most 1000, got 1000000000"}]})

    error: str


class SearchResponse(BaseModel):
    """Results of each query, best first; where fewer were found, id -1 (or ""), row -1 and score null."""

    scores: Annotated[Any, WithJsonSchema({"type": "array", "items": {"type": "array"}})]
    ids: Annotated[Any, WithJsonSchema({"type": "array", "items": _IDS})]
    rows: Numbers = Field(description="Row numbers of the compiled source.")
    work: Numbers = Field(description="Of each query, in the order of stats.")
    stats: dict[str, int] = Field(description="Work of the whole request.")
    degraded: bool = Field(False, description="Whether shards were lost, whose rows are missing; absent if not.")
    searched: float = Field(1.0, description="Share of the rows that took part; absent if all did.")


class Fate(BaseModel):
    """What became of one expected id."""

    id: int | str
    fate: str = Field(description="found, or the stage that lost it: routing, quantization, stopping, precision.")
    list: int
    list_rank: int
    lists_visited: int
    rows_read: int


class ExplainResponse(BaseModel):
    """In the order of the expected ids."""

    fates: list[Fate]


class IndexSummary(BaseModel):
    """An index that is served."""

    name: str
    rows: int = Field(description="That a search may find.")
    dimensions: int
    metric: str
    ids: str = Field(description="rows (external ids are row numbers), int64 or str.")
    generation: int


class IndexList(BaseModel):
    """All indexes that are served."""

    indexes: list[IndexSummary]


class IndexInfo(IndexSummary):
    """What an index is, and what its certificate promises."""

    index_id: str
    lists: int
    code_bytes: float = Field(description="Bytes of a row's code.")
    codes: str
    dense: str = Field(description="How rows are stored on disk; none = they are not.")
    resident_bytes: int
    disk_bytes: int
    deleted: int = Field(description="Rows that are deleted and still there.")
    defaults: dict[str, int | float | None] = Field(description="Options of a search that says nothing.")
    certificate: dict[str, Any] | None
    warnings: list[str]


class Refreshed(BaseModel):
    """What a look for a new generation found."""

    changed: bool
    generation: int


class State(BaseModel):
    """State of a process."""

    status: str
