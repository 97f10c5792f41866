"""``/docs``: the OpenAPI document for people, as HTML without a script."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from html import escape
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from . import page
from .openapi import document

_METHODS = ("get", "post", "put", "patch", "delete")
_EXAMPLE = """curl {root}v1/audio/speech \\
  -H "Authorization: Bearer glm-..." -H "Content-Type: application/json" \\
  -d '{{"input": "今天天气不错。"}}' -o weather.mp3"""


async def docs(request: Request) -> Response:
    """The page."""
    root = str(request.base_url)
    html = _html().replace("{example}", escape(_EXAMPLE.format(root=root)))
    return Response(html, media_type="text/html; charset=utf-8", headers=page.HEADERS)


def _groups() -> dict[str, list[tuple[str, str, dict[str, Any]]]]:
    groups: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, operations in document()["paths"].items():
        for method in _METHODS:
            if operation := operations.get(method):
                groups.setdefault(operation["tags"][0], []).append((method, path, operation))
    return groups


@cache
def _html() -> str:
    described = document()
    info = described["info"]
    groups = _groups()
    links = "".join(f'<a href="#{_anchor(tag)}">{escape(tag)}</a>' for tag in groups)
    sections = "".join(
        f'<section id="{_anchor(tag)}"><h2>{escape(tag)}</h2>{"".join(map(_operation, operations))}</section>'
        for tag, operations in groups.items()
    )
    schemas = "".join(
        f'<article id="schema-{name}"><h3>{name}</h3>{_fields(schema)}</article>'
        for name, schema in sorted(described["components"]["schemas"].items())
        if "properties" in schema
    )
    return f"""<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <title>{escape(info["title"])}: HTTP API</title>
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <link rel="icon" href="page/icon.svg" type="image/svg+xml">
  <link rel="stylesheet" href="page/style.css">
  <link rel="stylesheet" href="page/docs.css">
</head>
<body class="docs">
  <header>
    <h1>{escape(info["title"])}: HTTP API</h1>
    <p>{escape(info["description"])} Version {escape(info["version"])}.
      For programs: <a href="openapi.json">openapi.json</a>. To listen: <a href="./">the page</a>.</p>
    <pre>{{example}}</pre>
    <nav aria-label="Groups">{links}<a href="#types">Types</a></nav>
  </header>
  <main>{sections}<section id="types"><h2>Types</h2>{schemas}</section></main>
</body>
</html>
"""


def _anchor(words: str) -> str:
    return words.lower().replace(" ", "-")


def _operation(operation: tuple[str, str, dict[str, Any]]) -> str:
    method, path, described = operation
    parts = []
    if parameters := described.get("parameters"):
        rows = [
            (found["name"], found["in"], _type(found["schema"]), found.get("description", "")) for found in parameters
        ]
        parts.append("<h4>Parameters</h4>" + _table(("name", "in", "type", ""), rows))
    if body := described.get("requestBody"):
        parts += [f"<h4>Body, {escape(media)}</h4>{_content(found)}" for media, found in body["content"].items()]
    answers = [
        (status, escape(answer["description"]), _media(answer.get("content", {})))
        for status, answer in sorted(described["responses"].items())
    ]
    parts.append("<h4>Answers</h4>" + _table(("status", "", "body"), answers))
    return (
        f'<details><summary><b class="{method}">{method.upper()}</b> <code>{escape(path)}</code> '
        f"<span>{escape(described['summary'])}</span></summary>{''.join(parts)}</details>"
    )


def _content(content: dict[str, Any]) -> str:
    schema = content["schema"]
    return f"<p>{_type(schema)}</p>" if "$ref" in schema else _fields(schema)


def _media(content: dict[str, Any]) -> str:
    schemas = {_type(found.get("schema", {})): media for media, found in content.items() if "json" in media}
    return ", ".join(schemas) or ", ".join(map(escape, content))


def _fields(schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        (
            f"<code>{escape(name)}</code>{' <i>required</i>' if name in required else ''}",
            _type(found),
            escape(found.get("description", "")),
        )
        for name, found in schema["properties"].items()
    ]
    return _table(("key", "type", ""), rows)


def _type(schema: dict[str, Any]) -> str:
    """The type of a value, in a word or a few."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#schema-{name}">{name}</a>'
    if several := schema.get("anyOf"):
        return " or ".join(map(_type, several))
    if "enum" in schema:
        kind = " ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    elif "const" in schema:
        kind = f"<code>{escape(str(schema['const']).lower())}</code>"
    elif schema.get("type") == "array":
        kind = f"list of {_type(schema['items'])}" if "items" in schema else "list"
    else:
        types = schema.get("type", "any")
        kind = escape(" or ".join(types) if isinstance(types, list) else types)
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    if low is not None or high is not None:
        kind += f", {'' if low is None else f'{low:g}'} to {'...' if high is None else f'{high:g}'}"
    if (longest := schema.get("maxLength")) is not None:
        kind += f", up to {longest} characters"
    if schema.get("default") not in (None, "", {}):
        kind += f", default <code>{escape(str(schema['default']).lower())}</code>"
    return kind


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """``head`` is plain text, the cells of ``rows`` are HTML."""
    titles = "".join(f'<th scope="col">{name}</th>' for name in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'
