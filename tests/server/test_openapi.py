"""The description of the server is one, says how every refusal looks, and is what the server does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.searching import D
from tests.server.support import Local
from vqdistill.server.config import Limits

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
"""Without `positive_data_acceptance`: that vectors have the dimensions of the index is no matter of a schema."""


@pytest.fixture(scope="module")
def small(shelf: dict[str, Path]) -> Iterator[Local]:
    server = Local(shelf, limits=Limits(max_k=20, max_batch=4))
    yield server
    server.service.close()


OPERATIONS = [
    ("/v1/indexes", "GET", {}),
    ("/v1/indexes/{name}", "GET", {"name": "rows"}),
    ("/v1/indexes/{name}/search", "POST", {"name": "rows"}),
    ("/v1/indexes/{name}/search", "POST", {"name": "words"}),
    ("/v1/indexes/{name}/search", "POST", {}),
    ("/v1/indexes/{name}/explain", "POST", {"name": "rows"}),
    ("/v1/indexes/{name}/refresh", "POST", {"name": "rows"}),
    ("/health", "GET", {}),
    ("/ready", "GET", {}),
    ("/metrics", "GET", {}),
]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("path", "method", "fixed"), OPERATIONS, ids=str)
def test_the_server_is_as_described(small: Local, path: str, method: str, fixed: Any, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", small)
    operation = schema[path][method]
    if mode is GenerationMode.NEGATIVE and (not operation.body and (fixed or "{" not in path)):
        return  # there is nothing that could be wrong

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode, **({"path_parameters": fixed} if fixed else {})))
    def ask(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    ask()


def test_every_path_is_asked(small: Local) -> None:
    paths = small.ask("GET", "/openapi.json").json()["paths"]
    assert {(path, method.upper()) for path in paths for method in paths[path]} == {one[:2] for one in OPERATIONS}


def test_every_refusal_has_one_shape(small: Local) -> None:
    description = small.ask("GET", "/openapi.json").json()
    error = {"$ref": "#/components/schemas/Error"}
    for path, methods in description["paths"].items():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                if status != "200":
                    assert answer["content"]["application/json"]["schema"] == error, (path, status)


def test_a_key_is_described_where_it_is_asked_for(shelf: dict[str, Path]) -> None:
    server = Local(shelf, api_key="sixteen-characters")
    paths = server.ask("GET", "/openapi.json").json()["paths"]
    asked = {path for path, methods in paths.items() for operation in methods.values() if "security" in operation}
    assert asked == {path for path in paths if path.startswith("/v1") or path == "/metrics"}
    server.service.close()


def test_the_examples_are_requests(small: Local) -> None:
    schemas = json.loads(small.ask("GET", "/openapi.json").text)["components"]["schemas"]
    for example in schemas["SearchRequest"]["examples"]:
        if "queries" in example:
            example["queries"] = np.resize(example["queries"], (1, D)).tolist()
        assert small.search("rows", example).status_code == 200, example
    (example,) = schemas["ExplainRequest"]["examples"]
    example["query"] = np.resize(example["query"], D).tolist()
    assert small.ask("POST", "/v1/indexes/rows/explain", json=example).status_code == 200
