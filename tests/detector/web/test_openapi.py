"""The API is what its description says, asked at random by schemathesis, of a running daemon."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.detector.web.support import Watched

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]


OPERATIONS = [
    ("/status", "get"),
    ("/fleet", "get"),
    ("/incidents", "get"),
    ("/incidents/{id}", "get"),
    ("/alerts/{id}", "get"),
    ("/streams", "get"),
    ("/stream", "get"),
    ("/stream/window", "get"),
    ("/stream/forecast", "get"),
    ("/stream/hidden", "get"),
    ("/models", "get"),
    ("/reload", "post"),
    ("/receivers/test", "post"),
    ("/mutes", "get"),
    ("/mutes", "post"),
    ("/mutes/{id}", "delete"),
    ("/incidents/{id}/acknowledge", "post"),
    ("/alerts/{id}/verdict", "post"),
    ("/stream/reset", "post"),
]
STREAM_OF_EVENTS = ("/events", "get")  # which never ends: test_api.py has it


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_answer_is_as_described(daemon: Watched, path: str, method: str, mode: GenerationMode) -> None:
    description = schemathesis.openapi.from_url(f"{daemon.url}/api/v1/openapi.json")
    operation = description[f"/api/v1{path}"][method]

    # by hand: schemathesis' own tests need a pytest before 9
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    def ask(case: schemathesis.Case) -> None:
        headers = {"Authorization": f"Bearer {daemon.token}"}
        case.call_and_validate(base_url=daemon.url, checks=CHECKS, timeout=240, headers=headers)

    try:
        ask()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, "nothing that is right could be made"


def test_all_operations_are_tried(daemon: Watched) -> None:
    paths = daemon.get("/openapi.json")["paths"]
    found = {(path.removeprefix("/api/v1"), method) for path, operations in paths.items() for method in operations}
    assert found == {*OPERATIONS, STREAM_OF_EVENTS}


def test_every_operation_is_described(daemon: Watched) -> None:
    paths = daemon.get("/openapi.json")["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            assert operation["description"], (method, path)
            assert operation["responses"]["422"]["content"]["application/json"]["schema"]["$ref"].endswith("/Error")


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/api/v1/docs"])
def test_no_page_fetches_anything_from_elsewhere(daemon: Watched, path: str) -> None:
    assert daemon.ask(path).status == 404
