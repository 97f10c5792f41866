"""The body of a request for speech, in OpenAI's words, and what it means to the daemon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field
from starlette.requests import Request

from glmtts.client import AsyncClient
from glmtts.protocol.requests import MAX_SEED, MAX_SPEED, MIN_SPEED, Label
from glmtts.protocol.texts import has_control_character

from . import bodies
from .customers import Customer
from .errors import HttpError
from .settings import OPENAI_VOICES, Settings

#: Formats of the protocol and media types by OpenAI's ``response_format``.
FORMATS = {
    "mp3": ("mp3", "audio/mpeg"),
    "opus": ("ogg", "audio/ogg"),
    "flac": ("flac", "audio/flac"),
    "wav": ("wav", "audio/wav"),
    "pcm": ("pcm_s16le", "audio/pcm"),
}
#: The sample rate of ``pcm``, which has no header to say it (OpenAI's reference: 24 kHz).
_PCM_RATE = 24_000
#: Bytes of a recording over which no daemon closes the connection.
_SMALL = 2 << 20


def _says(description: str) -> Meta:
    return Meta(description=description)


class VoiceId(Struct):
    """A voice by its id, as OpenAI's custom voices are named."""

    id: str


class SpeechRequest(Struct, kw_only=True):
    """The body of ``POST /v1/audio/speech`` and ``POST /v1/audio/jobs``."""

    input: Annotated[str, _says("the text")]
    model: Annotated[str, _says("any: there is one model")] = ""
    voice: Annotated[str | VoiceId, _says("a voice of GET /v1/audio/voices; OpenAI's names are the default voice")] = ""
    speaker: Annotated[str, _says("another name for voice")] = ""
    response_format: str = "mp3"
    #: OpenAI takes 0.25 to 4; beyond the daemon's range the answer names it.
    speed: Annotated[float, Meta(extra_json_schema={"minimum": MIN_SPEED, "maximum": MAX_SPEED})] = 1.0
    stream_format: Annotated[
        Literal["audio", "sse"], _says("audio: the bytes of the file as they are made; sse: server-sent events")
    ] = "audio"
    stream: Annotated[bool, _says("true: as stream_format sse")] = False
    #: Taken, and of no effect: GLM-TTS follows the recording of its voice.
    instructions: Annotated[str, _says("of no effect: GLM-TTS follows the recording of its voice")] = ""
    language: Annotated[str, _says("of no effect: the text says it")] = ""
    ref_audio: Annotated[str, _says("a recording to clone, as base64 or a data: URI; no address, no path")] = ""
    ref_text: Annotated[str, _says("what is said in ref_audio")] = ""
    sample_rate: Annotated[int, Meta(ge=8_000, le=48_000, description="in Hz")] | UnsetType = UNSET
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED, description="the same seed gives the same audio")] = 0
    priority: (
        Annotated[
            Literal["vip", "interactive", "batch"],
            _says("interactive; batch in a batch; vip for keys that may"),
        ]
        | UnsetType
    ) = UNSET
    durable: Annotated[bool, _says("the job survives a crash of the daemon")] | UnsetType = UNSET
    deadline_s: (
        Annotated[float, Meta(gt=0, description="give up this many seconds after the acceptance")] | UnsetType
    ) = UNSET
    label: Annotated[Label, _says("a caption, for the lists of jobs")] = ""
    options: Annotated[dict[str, Any], _says("the engine's own")] = field(default_factory=dict)

    @property
    def sse(self) -> bool:
        """Whether the answer is a stream of events."""
        return self.stream or self.stream_format == "sse"

    def media_type(self) -> str:
        """The media type of the audio. Raises HttpError for a format that there is not."""
        if self.response_format not in FORMATS:
            message = f"response_format: {self.response_format!r} is none of {', '.join(FORMATS)}"
            raise HttpError(400, message, param="response_format")
        return FORMATS[self.response_format][1]

    def check(self) -> None:
        """Raise HttpError for a wrong format, speed or label."""
        self.media_type()
        if not MIN_SPEED <= self.speed <= MAX_SPEED:
            message = f"speed: {self.speed:g} is out of range: from {MIN_SPEED:g} to {MAX_SPEED:g}"
            raise HttpError(400, message, param="speed")
        if has_control_character(self.label):
            message = "label: a control character (a line end or a tab too); leave it out"
            raise HttpError(400, message, param="label")

    def options_for(
        self,
        customer: Customer,
        settings: Settings,
        key: str | None,
        *,
        priority: str = "interactive",
        recording: Callable[[str, str], bytes] = bodies.recording,
    ) -> dict[str, Any]:
        """The options of the client library. Raises HttpError.

        Args:
            key: the request's Idempotency-Key.
            priority: of a request that names none.
            recording: decodes ``ref_audio``.
        """
        self.check()
        priority = priority if self.priority is UNSET else self.priority
        customer.check_priority(priority)
        options: dict[str, Any] = {
            "format": FORMATS[self.response_format][0],
            "priority": priority,
            "seed": self.seed,
            "speed": None if self.speed == 1.0 else self.speed,
            "options": self.options or None,
            "on_behalf_of": customer.name,
            "key": key,
            "label": self.label or None,
        }
        if self.response_format == "pcm":
            options["sample_rate"] = _PCM_RATE
        for name in ("sample_rate", "durable", "deadline_s"):
            if (value := getattr(self, name)) is not UNSET:
                options[name] = value
        if self.ref_audio:
            if not self.ref_text:
                raise HttpError(400, "ref_text: what is said in ref_audio is missing", param="ref_text")
            options["prompt"] = recording(self.ref_audio, "ref_audio")
            options["prompt_text"] = self.ref_text
        elif voice := self._voice(settings):
            options["voice"] = voice
        return options

    def _voice(self, settings: Settings) -> str:
        """The daemon's name of the voice; ``""`` for its default."""
        asked = self.voice.id if isinstance(self.voice, VoiceId) else self.voice or self.speaker
        if asked in settings.voices:
            return settings.voices[asked]
        return "" if asked in OPENAI_VOICES else asked


async def asked(request: Request) -> tuple[SpeechRequest, dict[str, Any], list[str]]:
    """The body of a request for speech, its options for the client library, and its keys that are ignored.

    Raises HttpError.
    """
    state = request.app.state
    customer = state.customers.of(request)
    body = await bodies.read(request, state.settings.body_mib << 20)
    speech, ignored = bodies.decode(body, SpeechRequest)
    options = speech.options_for(customer, state.settings, request.headers.get("idempotency-key"))
    await check_size(state.client, options.get("prompt", b""), "ref_audio")
    # The stream of its speech may last for long.
    speech.ref_audio = ""
    return speech, options, ignored


async def check_size(client: AsyncClient, recording: bytes, param: str) -> None:
    """Refuse a recording that the daemon would. Raises HttpError and GlmttsError.

    Over a far larger one it closes the connection, with the streams of other customers.
    """
    if len(recording) <= _SMALL:
        return
    most = (await client.info()).limits["body_bytes"]
    if len(recording) > most:
        message = f"{param}: {len(recording)} bytes; at most {most} are accepted"
        raise HttpError(413, message, code="too_large", param=param)
