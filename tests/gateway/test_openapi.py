"""The OpenAPI document names every route for programs, and the types that check the requests."""

from __future__ import annotations

import msgspec
from starlette.routing import Route

from glmtts.gateway import answers, docs_page
from glmtts.gateway.app import _ROUTES
from glmtts.gateway.openapi import document
from glmtts.gateway.requests import SpeechRequest

#: For people, and what describes the others.
_NOT_DESCRIBED = {"/", "/page/{path:path}", "/docs", "/openapi.json"}


def test_every_route_and_method_is_described() -> None:
    paths = document()["paths"]
    served = {route.path: route.methods or set() for route in _ROUTES if isinstance(route, Route)}
    assert set(paths) == set(served) - _NOT_DESCRIBED
    for path, operations in paths.items():
        assert {method.upper() for method in operations} == served[path] - {"HEAD"}


def test_the_types_of_requests_are_those_of_the_document() -> None:
    schemas = document()["components"]["schemas"]
    assert set(schemas["SpeechRequest"]["properties"]) == set(SpeechRequest.__struct_fields__)
    assert schemas["SpeechRequest"]["required"] == ["input"]
    # The keys of a speech request are defaults of a batch.
    defaults = set(SpeechRequest.__struct_fields__) - {"input"}
    assert set(schemas["BatchRequest"]["properties"]) == defaults | {"items"}


def test_every_reference_leads_to_a_schema() -> None:
    text = msgspec.json.encode(document()).decode()
    schemas = document()["components"]["schemas"]
    named = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert named <= set(schemas) and set(answers.SCHEMAS) <= named


def test_the_page_for_people_has_all_of_it_without_a_script() -> None:
    html = docs_page._html()
    assert all(f"<code>{path}</code>" in html for path in document()["paths"])
    assert all(f'id="schema-{name}"' in html for name in document()["components"]["schemas"] if name != "VoiceId")
    assert "<script" not in html and "http://" not in html and " style=" not in html
