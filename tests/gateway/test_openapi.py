"""The OpenAPI document names every route for programs, and the types that check the requests."""

from __future__ import annotations

from starlette.routing import Route

from glmtts.gateway.app import _ROUTES
from glmtts.gateway.openapi import document
from glmtts.gateway.requests import SpeechRequest

#: For operators, people and probes; and the rest of an API that is described by its first request.
_NOT_DESCRIBED = {
    *("/", "/page/{path:path}", "/session"),
    *("/openapi.json", "/livez", "/readyz", "/metrics", "/api/tts/{id}", "/api/tts/{id}/audio"),
}


def test_every_route_and_method_is_described() -> None:
    paths = document()["paths"]
    served = {route.path: route.methods or set() for route in _ROUTES if isinstance(route, Route)}
    assert set(paths) == set(served) - _NOT_DESCRIBED
    for path, operations in paths.items():
        assert {method.upper() for method in operations} == served[path] - {"HEAD"}


def test_the_types_of_requests_are_those_of_the_document() -> None:
    schema = document()["components"]["schemas"]["SpeechRequest"]
    assert set(schema["properties"]) == set(SpeechRequest.__struct_fields__) and schema["required"] == ["input"]
