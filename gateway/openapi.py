"""The OpenAPI document, from the types that check the requests."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glmtts.protocol.requests import MAX_KEY

from . import __version__, answers, speech_stream
from .batch import BatchRequest
from .requests import FORMATS, SpeechRequest
from .session import Login
from .task_api import Task
from .voices import MEDIA_TYPES

_NO_CONTROL_CHARACTER = r"^[^\u0000-\u001f\u007f-\u009f]*$"
_REF = "#/components/schemas/{name}"
#: What ``POST /v1/audio/voices`` takes.
_VOICE_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["name", "audio_sample", "ref_text", "consent"],
    "properties": {
        "name": {"type": "string", "pattern": r"^[\w-]{1,64}$"},
        "audio_sample": {"type": "string", "format": "binary", "description": "WAV, FLAC, OGG or MP3, 1 to 30 s"},
        "ref_text": {"type": "string", "minLength": 1, "maxLength": 1_000, "description": "what is said in it"},
        "consent": {"type": "string", "minLength": 1, "description": "true, or an id: the person who is heard agrees"},
        "description": {"type": "string", "maxLength": 500},
        "language": {"type": "string", "maxLength": 32},
        "replace": {"type": "string", "description": "true: in place of an own voice of this name"},
    },
}
#: Statuses that every request may get.
_COMMON = {
    "401": "no key, or an unknown one",
    "403": "not for this customer",
    "429": "too many requests; retry-after says when",
    "500": "the speech could not be made",
    "503": "the daemon is away, or its queue is full; retry-after says when",
    "504": "not done within its deadline",
}


#: Statuses of requests with a body.
_BAD = {
    "400": "the body is wrong; param names the key",
    "408": "the body came too slowly",
    "413": "the body is too large",
    "422": "quarantined: workers died of this text",
}
_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY},
    "description": "the same key is the same job, for 24 hours",
}
_RANGE = {"name": "Range", "in": "header", "schema": {"type": "string"}, "description": "such as bytes=0-999"}
_FOLLOW = {
    "name": "follow",
    "in": "query",
    "schema": {"enum": ["0", "1", "false", "true", "no", "yes"]},
    "description": "1: send the file while it is made, from its beginning",
}
_LIMIT = {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1_000}}
_SINCE = {
    "name": "since",
    "in": "query",
    "schema": {"type": "string", "format": "date"},
    "description": "the first day, such as 2026-11-01",
}
_NO_JOB, _NO_VOICE = "this customer has no such job", "this customer has no such voice"
_OF_FILE = {"400": "the id is wrong", "404": _NO_JOB, "409": "cancelled", "416": "no such range", "422": "quarantined"}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(name=name)}}}


def _binary(media_types: Iterable[str]) -> dict[str, Any]:
    return {media: {"schema": {"type": "string", "format": "binary"}} for media in media_types}


def _ok(words: str, content: dict[str, Any], status: str = "200") -> dict[str, Any]:
    return {status: {"description": words, "content": content}}


def _operation(
    tag: str, summary: str, answers: dict[str, Any], errors: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    errors = (errors or {}) | _COMMON
    wrong = {status: {"description": words, "content": _json("Error")} for status, words in errors.items()}
    return {"tags": [tag], "summary": summary, "responses": wrong | answers, "security": [{"key": []}, {}], **more}


def _body(name: str) -> dict[str, Any]:
    return {"required": True, "content": _json(name)}


def _paths() -> dict[str, Any]:
    media_types = [media for _, media in FORMATS.values()]
    audio, recordings = _binary(media_types), _binary(MEDIA_TYPES.values())
    event = {"type": "object", "properties": {"event": {"type": "string"}, "data": {"type": "string"}}}
    events: dict[str, Any] = {"text/event-stream": {"schema": event}}
    form = {"required": True, "content": {"multipart/form-data": {"schema": _VOICE_FORM}}}
    file = _operation(
        "Jobs",
        "The audio of a job, or a part of it; waits for its end",
        _ok("the file", audio) | _ok("a part of it", audio, "206"),
        _OF_FILE,
        parameters=[_ID, _FOLLOW, _RANGE],
    )
    not_changed = {"304": {"description": "If-None-Match names this file"}}
    file["responses"] |= not_changed
    refused = {"429": "TaskRefused", "503": "TaskRefused"}
    task = _operation("Flask service", "Take a task", _ok("it is on disk", _json("TaskTaken"), "202"), _BAD)
    for status, name in refused.items():
        task["responses"][status]["content"] = {
            "application/json": {"schema": {"anyOf": [answers.ref(name), answers.ref("Error")]}}
        }
    text = {"text/plain": {"schema": {"type": "string"}}}
    away = {"503": {"description": "the daemon is away, or takes no jobs", "content": text}}
    return {
        "/v1/audio/speech": {
            "post": _operation(
                "Speech",
                "Speak a text",
                _ok("the audio, as it is made", audio | events),
                _BAD,
                requestBody=_body("SpeechRequest"),
                parameters=[_KEY],
            )
        },
        speech_stream.PATH: {
            "get": _operation(
                "Speech",
                "Open a WebSocket: a text in pieces, and its speech while it comes (docs/http.md)",
                {"101": {"description": "the WebSocket is open"}},
                {"426": "this is no handshake"},
            )
        },
        "/v1/audio/speech/batch": {
            "post": _operation(
                "Speech",
                "Speak many texts",
                _ok("a result for each item, in their order; sent as they are made", _json("Batch")),
                _BAD,
                requestBody=_body("BatchRequest"),
                parameters=[_KEY],
            )
        },
        "/v1/audio/jobs": {
            "post": _operation(
                "Jobs",
                "Take a job",
                _ok("it is on disk", _json("Job"), "202"),
                _BAD,
                requestBody=_body("SpeechRequest"),
                parameters=[_KEY],
            ),
            "get": _operation(
                "Jobs", "The newest jobs", _ok("a list", _json("Jobs")), {"400": "limit is wrong"}, parameters=[_LIMIT]
            ),
        },
        "/v1/audio/jobs/{id}": {
            "get": _operation(
                "Jobs", "A job", _ok("its state", _json("Job")), {"400": "wrong id", "404": _NO_JOB}, parameters=[_ID]
            ),
            "delete": _operation(
                "Jobs",
                "Cancel a job",
                _ok("its state", _json("Job")),
                {"400": "wrong id", "404": _NO_JOB},
                parameters=[_ID],
            ),
        },
        "/v1/audio/jobs/{id}/audio": {"get": file},
        "/v1/audio/jobs/{id}/events": {
            "get": _operation(
                "Jobs",
                "The events of a job, up to its end",
                _ok("server-sent events: job, then done or error", events),
                {"400": "the id is wrong", "404": _NO_JOB},
                parameters=[_ID],
            )
        },
        "/v1/audio/usage": {
            "get": _operation(
                "Jobs",
                "What was spoken, by day",
                _ok("the newest day first", _json("Usage")),
                {"400": "since is wrong"},
                parameters=[_SINCE],
            )
        },
        "/v1/audio/voices": {
            "get": _operation("Voices", "Voices for all, and one's own", _ok("a list", _json("Voices"))),
            "post": _operation(
                "Voices",
                "Keep a voice of one's own",
                _ok("the voice", _json("Voice")),
                _BAD | {"415": "the body is no form"},
                requestBody=form,
            ),
        },
        "/v1/audio/voices/{id}": {
            "delete": _operation(
                "Voices",
                "Remove a voice of one's own",
                _ok("it is removed", _json("DeletedVoice")),
                {"404": _NO_VOICE},
                parameters=[_ID],
            )
        },
        "/v1/audio/voices/{id}/sample": {
            "get": _operation(
                "Voices",
                "The recording of a voice",
                _ok("the file", recordings),
                {"404": _NO_VOICE},
                parameters=[_ID],
            )
        },
        "/v1/models": {"get": _operation("Speech", "Names for model", _ok("a list", _json("Models")))},
        "/v1/audio/models": {"get": _operation("Speech", "Names for model", _ok("a list", _json("AudioModels")))},
        "/api/tts": {"post": task | {"requestBody": _body("Task")}},
        "/api/tts/{id}": {
            "get": _operation(
                "Flask service",
                "The state of a task",
                _ok("its state", _json("TaskState")),
                {"400": "the id is wrong", "404": "there is no such task"},
                parameters=[_ID],
            )
        },
        "/api/tts/{id}/audio": {"get": file | {"tags": ["Flask service"], "summary": "The audio of a task"}},
        "/session": {
            "get": _operation("The page", "Who asks, and what is there for them", _ok("it", _json("Session"))),
            "post": _operation(
                "The page",
                "Change a key into a cookie",
                {"204": {"description": "the cookie is set"}},
                _BAD,
                requestBody=_body("Login"),
            ),
            "delete": _operation("The page", "Forget the key", {"204": {"description": "the cookie is gone"}}),
        },
        "/livez": {"get": _operation("Operation", "Whether the gateway runs", _ok("it does", text))},
        "/readyz": {"get": _operation("Operation", "Whether the daemon takes jobs", _ok("it does", text) | away)},
        "/metrics": {"get": _operation("Operation", "Prometheus metrics", _ok("in Prometheus's format", text))},
    }


def _allow_null(schema: dict[str, Any]) -> None:
    """OpenAI's packages send null for what is not given."""
    if "enum" in schema:
        schema["enum"] = [*schema["enum"], None]
    if "anyOf" in schema:
        schema["anyOf"] = [*schema["anyOf"], {"type": "null"}]
    elif "type" in schema:
        schema["type"] = [schema["type"], "null"]


@cache
def document() -> dict[str, Any]:
    """The document, OpenAPI 3.1."""
    _, components = msgspec.json.schema_components([SpeechRequest, BatchRequest, Task, Login], ref_template=_REF)
    components["SpeechRequest"]["properties"]["input"]["minLength"] = 1
    components["Task"]["properties"]["input_text"]["minLength"] = 1
    for name in ("SpeechRequest", "BatchRequest"):
        components[name]["properties"]["response_format"]["enum"] = list(FORMATS)
        components[name]["properties"]["label"]["pattern"] = _NO_CONTROL_CHARACTER
    batch = components["BatchRequest"]["properties"]
    del batch["input"]
    # One that is wrong fails alone.
    batch["items"]["items"] = {"anyOf": [answers.ref("SpeechRequest"), {}]}
    for name in ("SpeechRequest", "BatchRequest", "Task"):
        schema = components[name]
        for key, value in schema["properties"].items():
            if key not in schema["required"]:
                _allow_null(value)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "GLM-TTS",
            "version": __version__,
            "description": "Speech over HTTP. Programs written for OpenAI's speech API use it unchanged.",
        },
        "paths": _paths(),
        "components": {
            "schemas": {**components, **answers.SCHEMAS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


async def openapi(_: Request) -> Response:
    """The document."""
    return JSONResponse(document())
