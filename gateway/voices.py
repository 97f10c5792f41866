"""``/v1/audio/voices``: the voices for all, and those that a customer keeps for itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from glmtts.client import AsyncClient, RequestFailed
from glmtts.protocol.errors import ErrorCode

from . import bodies, errors
from .customers import Customer
from .errors import HttpError
from .requests import check_size
from .settings import OPENAI_VOICES

#: Parts of a form, and bytes of a part that is no file: a transcript has 1,000 characters.
_MAX_FIELDS, _MAX_FIELD_BYTES = 16, 64 << 10
#: Words for "no" where a consent is asked for. OpenAI's is the id of a recording.
_NO = {"", "0", "false", "no", "off", "null", "none"}
MEDIA_TYPES = {"wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg", "mp3": "audio/mpeg"}
_FIELDS = ("name", "consent", "ref_text", "description", "speaker_description", "language", "replace", "type")


def asker(request: Request) -> Customer | None:
    """Who reads a list: some programs do it without their key (Open WebUI), which ``public_lists`` allows."""
    state = request.app.state
    try:
        customer: Customer = state.customers.of(request)
    except HttpError:
        if not state.settings.public_lists:
            raise
        return None
    return customer


async def listed(request: Request) -> Response:
    """The names for ``voice``: those for all, and the customer's own."""
    customer = asker(request)
    client: AsyncClient = request.app.state.client
    # Without a customer the daemon names the gateway's own too.
    found = [
        {
            "id": voice.name,
            "name": voice.name,
            "language": voice.language,
            "description": voice.description,
            "owner": voice.owner,
            "sample": voice.sample,
        }
        for voice in await client.voices(on_behalf_of=customer.name if customer else None)
        if customer or voice.owner == "shared"
    ]
    return JSONResponse({"voices": found})


async def create(request: Request) -> Response:
    """Keep a voice for a customer alone."""
    state = request.app.state
    customer: Customer = state.customers.of(request)
    recording, fields, ignored = await _form(request, state.settings.body_mib << 20)
    if fields.get("type", "audio_sample") != "audio_sample":
        raise HttpError(400, "type: voices are made of recordings here; send audio_sample", param="type")
    for name in ("name", "ref_text"):
        if not fields.get(name, "").strip():
            what = ": what is said in audio_sample, word for word" if name == "ref_text" else ""
            raise HttpError(400, f"{name}: this field is missing{what}", param=name)
    if fields.get("consent", "").strip().lower() in _NO:
        message = "consent: a voice is kept only if the person who is heard agrees; say so with consent=true"
        raise HttpError(400, message, param="consent")
    if recording is None:
        raise HttpError(400, "audio_sample: the recording is missing; send it as a file", param="audio_sample")
    name = fields["name"].strip()
    if name in OPENAI_VOICES or name in state.settings.voices:
        message = f"name: {name!r} stands for another voice here; choose another name"
        raise HttpError(400, message, param="name")
    client: AsyncClient = state.client
    await check_size(client, recording, "audio_sample")
    adding = client.add_voice(
        name,
        recording,
        text=fields["ref_text"],
        description=fields.get("description") or fields.get("speaker_description", ""),
        language=fields.get("language", ""),
        consent=True,
        replace=fields.get("replace", "").strip().lower() not in _NO,
        on_behalf_of=customer.name,
    )
    try:
        added = await bodies.unless_gone(request, adding)
    except RequestFailed as error:
        raise _of_form(error) from None
    values: dict[str, Any] = {
        "id": added.name,
        "name": added.name,
        "created_at": int(added.created),
        "object": "audio.voice",
        "type": "audio_sample",
        "owner": "own",
        "seconds": added.seconds,
    }
    if added.warning:
        values["warning"] = added.warning
    return JSONResponse(values, headers={"Cache-Control": "no-store"} | bodies.ignored_header(ignored))


async def delete(request: Request) -> Response:
    """Remove a voice of the customer's own."""
    customer = request.app.state.customers.of(request)
    client: AsyncClient = request.app.state.client
    id = request.path_params["id"]
    try:
        await client.remove_voice(id, on_behalf_of=customer.name)
    except RequestFailed as error:
        raise _missing(error) from None
    return JSONResponse({"id": id, "object": "audio.voice.deleted", "deleted": True})


async def sample(request: Request) -> Response:
    """The recording of a voice."""
    customer = request.app.state.customers.of(request)
    client: AsyncClient = request.app.state.client
    try:
        found = await client.voice_sample(request.path_params["id"], on_behalf_of=customer.name)
    except RequestFailed as error:
        raise _missing(error) from None
    # Customers send these bytes: no browser is to take them for a page.
    request.state.held.take(len(found.audio))
    headers = {
        "Cache-Control": "no-store",
        "Content-Length": str(len(found.audio)),
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    media_type = MEDIA_TYPES.get(found.format, "application/octet-stream")
    return StreamingResponse(bodies.in_pieces(found.audio), media_type=media_type, headers=headers)


def _of_form(error: RequestFailed) -> HttpError:
    """An error of the daemon with the field of the form that it is about."""
    found = errors.of_daemon(error)
    if error.message.startswith("text: "):
        found.param, found.message = "ref_text", f"ref_text{error.message.removeprefix('text')}"
    elif error.code == ErrorCode.BAD_AUDIO or found.param == "body":
        found.param = "audio_sample"
    return found


def _missing(error: RequestFailed) -> HttpError:
    """404 where the voice is what the path names, and not a key of the body."""
    found = errors.of_daemon(error)
    if error.code in (ErrorCode.VOICE_NOT_FOUND, ErrorCode.BAD_REQUEST):
        # A name that no voice can have is none as well.
        found.status, found.code, found.param = 404, ErrorCode.VOICE_NOT_FOUND, None
    return found


class _Parser(MultiPartParser):
    """Knows whether the form came to its end."""

    is_whole = False

    def on_end(self) -> None:
        self.is_whole = True


async def _form(request: Request, most: int) -> tuple[bytes | None, dict[str, str], list[str]]:
    """The file of a form, its other fields, and the names of those that are ignored. Raises HttpError."""
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        message = "send the voice as multipart/form-data, with its recording as the file audio_sample"
        raise HttpError(415, message, code="unsupported_media_type")
    body = await bodies.read(request, most)

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    parser = _Parser(request.headers, whole(), max_files=1, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HttpError(400, f"the form can't be read: {error.message}") from None
    if not parser.is_whole:
        raise HttpError(400, "the form can't be read: it ends before its last boundary")
    recording: bytes | None = None
    fields: dict[str, str] = {}
    ignored: list[str] = []
    for name, value in form.multi_items():
        if name == "audio_sample" and isinstance(value, UploadFile):
            recording = await value.read()
        elif isinstance(value, UploadFile) or name == "audio_sample":
            kind = "a file" if isinstance(value, UploadFile) else "a text"
            raise HttpError(400, f"{name[:60]}: {kind}, where the file is to be audio_sample", param=name[:60])
        elif name in fields:
            raise HttpError(400, f"{name}: sent twice", param=name)
        elif name in _FIELDS:
            fields[name] = value
        elif name.isascii() and name.isprintable():
            ignored.append(name)
    await form.close()
    return recording, fields, ignored
