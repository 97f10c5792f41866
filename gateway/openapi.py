"""The OpenAPI document, from the types that check the requests."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from . import __version__, speech_stream
from .requests import FORMATS, SpeechRequest
from .task_api import Task
from .voices import MEDIA_TYPES

_REF = "#/components/schemas/{name}"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
#: What ``POST /v1/audio/voices`` takes and gives.
_VOICE_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["name", "audio_sample", "ref_text", "consent"],
    "properties": {
        "name": {"type": "string", "pattern": r"^[\w-]{1,64}$"},
        "audio_sample": {"type": "string", "format": "binary", "description": "WAV, FLAC, OGG or MP3, 1 to 30 s"},
        "ref_text": {"type": "string", "minLength": 1, "maxLength": 1_000, "description": "what is said in it"},
        "consent": {"type": "string", "description": "true, or an id: the person who is heard agrees"},
        "description": {"type": "string", "maxLength": 500},
        "language": {"type": "string", "maxLength": 32},
        "replace": {"type": "string", "description": "true: in place of an own voice of this name"},
    },
}
_VOICE = {
    "type": "object",
    "required": ["id", "name", "created_at", "object", "type"],
    "properties": {
        "id": {"type": "string"},
        "name": {"type": "string"},
        "created_at": {"type": "integer"},
        "object": {"const": "audio.voice"},
        "type": {"const": "audio_sample"},
        "owner": {"const": "own"},
        "seconds": {"type": "number"},
        "warning": {"type": "string"},
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


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _answers(found: dict[str, Any], **more: str) -> dict[str, Any]:
    error = _json({"$ref": "#/components/schemas/Error"})
    errors = {status.removeprefix("s"): words for status, words in more.items()} | _COMMON
    return found | {status: {"description": words, "content": error} for status, words in errors.items()}


def _operation(summary: str, answers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"summary": summary, "responses": answers, "security": [{"key": []}, {}], **more}


def _body(name: str) -> dict[str, Any]:
    return {"required": True, "content": _json({"$ref": _REF.format(name=name)})}


def document() -> dict[str, Any]:
    """The document, OpenAPI 3.1."""
    _, components = msgspec.json.schema_components([SpeechRequest, Task], ref_template=_REF)
    components["SpeechRequest"]["properties"]["response_format"]["enum"] = list(FORMATS)
    audio = {media: {"schema": {"type": "string", "format": "binary"}} for _, media in FORMATS.values()}
    recordings = {media: {"schema": {"type": "string", "format": "binary"}} for media in MEDIA_TYPES.values()}
    events: dict[str, Any] = {"text/event-stream": {}}
    job, jobs = {"type": "object"}, {"type": "object"}
    id = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}]
    no_voice = "this customer has no such voice"
    wrong, unknown = "the body is wrong; param names the key", "this customer has no such job"
    bad = {"s400": wrong, "s408": "the body came too slowly", "s413": "the body is too large", "s422": "quarantined"}
    sent = {"200": {"description": "the audio, as it is made", "content": audio | events}}
    taken = {"202": {"description": "the job is on disk", "content": _json(job)}}

    def ok(words: str, content: dict[str, Any]) -> dict[str, Any]:
        return {"200": {"description": words, "content": content}}

    limit = {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1_000}}
    since = {"name": "since", "in": "query", "schema": {"type": "string", "format": "date"}}
    paths = {
        "/v1/audio/speech": {"post": _operation("Speak", _answers(sent, **bad), requestBody=_body("SpeechRequest"))},
        speech_stream.PATH: {
            "get": _operation(
                "Open a WebSocket: a text in pieces, and its speech while it comes (docs/http.md)",
                _answers({"101": {"description": "the WebSocket is open"}}, s426="this is no handshake"),
            )
        },
        "/v1/audio/jobs": {
            "post": _operation("Take a job", _answers(taken, **bad), requestBody=_body("SpeechRequest")),
            "get": _operation(
                "The newest jobs", _answers(ok("a list", _json(jobs)), s400="limit is wrong"), parameters=[limit]
            ),
        },
        "/v1/audio/jobs/{id}": {
            "get": _operation("A job", _answers(ok("its state", _json(job)), s400=wrong, s404=unknown), parameters=id),
            "delete": _operation(
                "Cancel a job", _answers(ok("its state", _json(job)), s400=wrong, s404=unknown), parameters=id
            ),
        },
        "/v1/audio/jobs/{id}/audio": {
            "get": _operation(
                "The audio of a job",
                _answers(
                    ok("the file", audio) | {"206": {"description": "a part of it", "content": audio}},
                    s400=wrong,
                    s404=unknown,
                    s409="cancelled",
                    s416="no such range",
                    s422="quarantined",
                ),
                parameters=id,
            )
        },
        "/v1/audio/jobs/{id}/events": {
            "get": _operation(
                "The events of a job", _answers(ok("up to its end", events), s400=wrong, s404=unknown), parameters=id
            )
        },
        "/v1/audio/usage": {
            "get": _operation(
                "What was spoken, by day",
                _answers(ok("a list", _json({"type": "object"})), s400=wrong),
                parameters=[since],
            )
        },
        "/v1/audio/voices": {
            "get": _operation("Voices for all, and one's own", _answers(ok("a list", _json({"type": "object"})))),
            "post": _operation(
                "Keep a voice of one's own",
                _answers(
                    ok("the voice", _json({"$ref": _REF.format(name="Voice")})),
                    **bad,
                    s415="the body is no form",
                ),
                requestBody={"required": True, "content": {"multipart/form-data": {"schema": _VOICE_FORM}}},
            ),
        },
        "/v1/audio/voices/{id}": {
            "delete": _operation(
                "Remove a voice of one's own",
                _answers(ok("it is removed", _json({"type": "object"})), s400="the id is wrong", s404=no_voice),
                parameters=id,
            )
        },
        "/v1/audio/voices/{id}/sample": {
            "get": _operation(
                "The recording of a voice",
                _answers(ok("the file", recordings), s400="the id is wrong", s404=no_voice),
                parameters=id,
            )
        },
        "/v1/models": {"get": _operation("Names for model", _answers(ok("a list", _json({"type": "object"}))))},
        "/v1/audio/models": {"get": _operation("Names for model", _answers(ok("a list", _json({"type": "object"}))))},
        "/api/tts": {"post": _operation("Take a task", _answers(taken, **bad), requestBody=_body("Task"))},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "GLM-TTS", "version": __version__, "description": "Speech over HTTP: docs/http.md."},
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": _ERROR, "Voice": _VOICE},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


async def openapi(_: Request) -> Response:
    """The document."""
    return JSONResponse(document())
