"""What the gateway answers, as JSON Schema for the OpenAPI document. The types of its requests check them."""

from __future__ import annotations

from typing import Any

_TEXT: dict[str, Any] = {"type": "string"}
_NUMBER: dict[str, Any] = {"type": "number"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_FLAG: dict[str, Any] = {"type": "boolean"}
_STATES: dict[str, Any] = {"enum": ["waiting", "running", "done", "failed", "cancelled"]}


def ref(name: str) -> dict[str, Any]:
    """A reference to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: str, **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": required.split(), "properties": properties}


def _said(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {**schema, "description": description}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return _object("object data", object={"const": "list"}, data={"type": "array", "items": of})


_USAGE = _object(
    "input_tokens output_tokens total_tokens", input_tokens=_COUNT, output_tokens=_COUNT, total_tokens=_COUNT
)

#: By their names in the document.
SCHEMAS: dict[str, dict[str, Any]] = {
    "Error": _object(
        "error",
        error=_object(
            "message type param code",
            message=_TEXT,
            type=_TEXT,
            param=_said({"type": ["string", "null"]}, "the key of the body that is wrong"),
            code=_said(_TEXT, "such as bad_request, queue_full or rate_limited: docs/http.md, Errors"),
        ),
    ),
    "Job": _object(
        "id object status",
        id=_TEXT,
        object={"const": "audio.job"},
        status=_STATES,
        label=_TEXT,
        priority=_TEXT,
        created_at=_said({"type": "integer"}, "seconds since 1970"),
        characters=_COUNT,
        position=_said(_COUNT, "jobs before it in the queue"),
        estimated_wait_s=_said({"type": ["number", "null"]}, "seconds until it begins, as measured"),
        warning=_said({"type": ["string", "null"]}, "the queue is long or paused"),
        segment=_said({"type": "integer"}, "of `segments` is done"),
        segments=_COUNT,
        audio_s=_said(_NUMBER, "seconds of speech made so far"),
        waited_s=_NUMBER,
        synthesis_s=_NUMBER,
        error=_object("code message", code=_TEXT, message=_TEXT),
    ),
    "Jobs": _list(ref("Job")),
    "Batch": _object(
        "id results total succeeded failed",
        id=_TEXT,
        results={
            "type": "array",
            "items": _object(
                "index status",
                index=_said(_COUNT, "of the item"),
                status={"enum": ["success", "error"]},
                audio_data=_said({"type": "string", "contentEncoding": "base64"}, "the file"),
                media_type=_TEXT,
                sample_rate=_COUNT,
                audio_s=_NUMBER,
                job=_said(_TEXT, "the id of its job"),
                usage=_USAGE,
                error=_said(_TEXT, "what went wrong with this item"),
                code=_TEXT,
                param=_TEXT,
                retryable=_FLAG,
                retry_after_s=_NUMBER,
            ),
        },
        total=_COUNT,
        succeeded=_COUNT,
        failed=_COUNT,
    ),
    "Usage": _list(_object("day jobs characters audio_s", day=_TEXT, jobs=_COUNT, characters=_COUNT, audio_s=_NUMBER)),
    "Voice": _object(
        "id name created_at object type",
        id=_TEXT,
        name=_TEXT,
        created_at={"type": "integer"},
        object={"const": "audio.voice"},
        type={"const": "audio_sample"},
        owner={"const": "own"},
        seconds=_NUMBER,
        warning=_TEXT,
    ),
    "Voices": _object(
        "voices",
        voices={
            "type": "array",
            "items": _object(
                "id name language description owner sample",
                id=_TEXT,
                name=_TEXT,
                language=_TEXT,
                description=_TEXT,
                owner=_said({"enum": ["shared", "own"]}, "for all customers, or this one's own"),
                sample=_said(_FLAG, "whether its recording can be fetched"),
            ),
        },
    ),
    "DeletedVoice": _object(
        "id object deleted", id=_TEXT, object={"const": "audio.voice.deleted"}, deleted={"const": True}
    ),
    "Models": _list(_object("id object", id=_TEXT, object={"const": "model"}, created=_COUNT, owned_by=_TEXT)),
    "AudioModels": _object("models", models={"type": "array", "items": _object("id name", id=_TEXT, name=_TEXT)}),
    "TaskTaken": _object(
        "message task_id queue_size",
        message=_TEXT,
        task_id=_TEXT,
        queue_size=_COUNT,
        warning=_said(_TEXT, "from four waiting on"),
        estimated_wait=_said(_COUNT, "seconds, as measured"),
    ),
    "TaskState": _object(
        "task_id status queue_position estimated_wait progress download_url",
        task_id=_TEXT,
        status=_STATES,
        queue_position=_COUNT,
        estimated_wait=_COUNT,
        progress=_said({"type": "integer", "minimum": 0, "maximum": 100}, "per cent"),
        download_url=_said({"type": ["string", "null"]}, "of its audio, when it is done"),
        error=_TEXT,
    ),
    "TaskRefused": _object("error code", error=_TEXT, code={"enum": [429, 503]}),
    "Session": _object(
        "version needs_key has_keys customer has_key priorities formats",
        version=_TEXT,
        needs_key=_FLAG,
        has_keys=_FLAG,
        customer={"type": ["string", "null"]},
        has_key=_FLAG,
        priorities={"type": "array", "items": _TEXT},
        formats={"type": "array", "items": _TEXT},
        daemon=_said({"type": ["object", "null"]}, "what the daemon can do; null while it is away"),
    ),
}
