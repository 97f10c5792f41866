"""OpenAI's speech API as its servers speak it: what they can do, and one request, read in a thread of its own."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import re
import socket
import threading
import time
import wave
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from .. import cuda_errors
from ..base import EngineError, Reference
from .answer import Answer, EndlessError
from .process import ServerError
from .rules import port_of
from .wav import AudioReader, BadAudioError

if TYPE_CHECKING:
    from .process import ServerProcess
    from .wav import Samples

#: Seconds for a connection, and for the answer to a question that needs no work.
_CONNECT_S, _ASK_S = 10.0, 5.0
#: How long a job waits for a server that answers 429 or 503, and between two tries.
BUSY_S = 60.0
_PAUSE_S, _PAUSE_MAX_S = 0.25, 5.0
_BUSY = (429, 503)
#: Samples that a request reads ahead of the job: 20 s at 24 kHz. Beyond them the connection's own buffers fill, and the
#: server waits.
_AHEAD = 480_000
#: Most audio for a text: speech is several times shorter.
_LONGEST_S, _LONGEST_S_PER_CHARACTER = 30.0, 2.0
#: Most bytes of an error that are read, and most characters of it that are quoted.
_ERROR_BYTES, _QUOTED = 64 << 10, 300
_READ = 64 << 10
#: Media types that are files of packed audio.
_PACKED = ("mpeg", "mp3", "mp4", "ogg", "opus", "flac", "aac")
#: A server that dies closes its connections first: how long to wait for its end.
_DEATH_S = 1.0
#: Most names of voices that are listed.
_VOICES = 500
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


class ServerFaultError(EngineError):
    """A request failed, perhaps because the server is broken; the warm-up sentence has to show whether it is."""


class Api:
    """The server's address, and questions that it answers at once."""

    def __init__(self, url: str, *, key: str = "", raw_rate: int = 0) -> None:
        """``raw_rate``: as in AudioReader; 0 asks for WAV."""
        where = urlsplit(url)
        self.url = url
        self._kind = http.client.HTTPSConnection if where.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = where.hostname or "", port_of(url)
        self._path = where.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json", "Connection": "close"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self.raw_rate = raw_rate
        #: The child that answers, if it is ours.
        self.child: ServerProcess | None = None

    def health(self) -> int:
        """The status of ``/health``; a server without it answers 404 once it listens. Raises OSError."""
        return self._ask("/health")[0]

    def model(self) -> str:
        """The first model that the server lists; ``""`` if it lists none."""
        return next(iter(_names(self._listed("/v1/models", "data"))), "")

    def voices(self) -> list[str]:
        """The names of the server's voices; none if it does not list them."""
        return _names(self._listed("/v1/audio/voices", "voices"))

    def connect(self) -> http.client.HTTPConnection:
        """A connection for one request. Raises OSError."""
        connection = self._connection(_CONNECT_S)
        connection.connect()
        # How long speech takes is the daemon's to judge ([workers] hang_timeout_s).
        connection.sock.settimeout(None)
        return connection

    def post(self, connection: http.client.HTTPConnection, body: bytes) -> Answer:
        """Ask for speech, and wait for the status."""
        connection.request("POST", f"{self._path}/v1/audio/speech", body, self._headers)
        answer = connection.getresponse()
        assert isinstance(answer, Answer)
        return answer

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        connection = self._kind(self._host, self._port, timeout=timeout_s)
        connection.response_class = Answer
        return connection

    def _listed(self, path: str, key: str) -> Any:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, AttributeError):
            status, data = self._ask(path)
            if status == 200:
                return json.loads(data).get(key)
        return None

    def _ask(self, path: str) -> tuple[int, bytes]:
        connection = self._connection(_ASK_S)
        try:
            connection.request("GET", self._path + path, headers=self._headers)
            answer = connection.getresponse()
            return answer.status, answer.read(1 << 20)
        finally:
            connection.close()


def _names(listed: Any) -> list[str]:
    """Names in a list of names, or of objects that have one."""
    names: list[str] = []
    for one in listed if isinstance(listed, list) else []:
        name = one.get("id") or one.get("name") if isinstance(one, dict) else one
        # As the protocol takes them.
        if isinstance(name, str) and 0 < len(name) <= 64 and name.isprintable() and name not in names:
            names.append(name)
    return names[:_VOICES]


def recording(reference: Reference) -> str:
    """A reference recording as servers take it: a ``data:`` URI of a 16-bit WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(reference.sample_rate)
        out.writeframes((np.clip(reference.samples, -1, 1) * 32_767).astype("<i2").tobytes())
    return f"data:audio/wav;base64,{base64.b64encode(file.getvalue()).decode()}"


class Request:
    """One text on its way through the server, in a thread that sends it and reads the answer.

    The thread puts samples down and calls ``on_news``; :meth:`take` collects them. It stops reading while more than
    ``_AHEAD`` samples lie there.
    """

    def __init__(self, api: Api, body: dict[str, Any], on_news: Callable[[], None], *, busy_s: float = 0.0) -> None:
        """``body``: the request's JSON. ``busy_s``: how long to wait for a busy server; 0: BUSY_S."""
        self._api = api
        self._body = json.dumps(body).encode()
        self._text: str = body["input"]
        self._on_news = on_news
        self._busy_s = busy_s or BUSY_S
        self._cancelled = threading.Event()
        self._room = threading.Condition()
        self._samples: list[Samples] = []
        self._waiting = 0
        self._sock: socket.socket | None = None
        #: The server's progress: grows with each answer and each byte of audio.
        self.done = 0
        #: Of the answer, in Hz; 0 until it is known.
        self.rate = 0
        #: Set when all samples have come, or ``error`` is there.
        self.finished = threading.Event()
        self.error: Exception | None = None
        threading.Thread(target=self._run, name="server-request", daemon=True).start()

    def take(self) -> Samples:
        """The samples that have come since the last call, of shape (n,); they make room for more."""
        with self._room:
            samples, self._samples, self._waiting = self._samples, [], 0
            self._room.notify()
        return np.concatenate(samples) if samples else np.zeros(0, np.float32)

    def cancel(self) -> None:
        """Close the connection, by which the server learns that the speech is not wanted."""
        with self._room:
            self._cancelled.set()
            self._room.notify()
            if self._sock is not None:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)

    # --- in the thread

    def _run(self) -> None:
        try:
            self._speak()
        except EngineError as error:
            self.error = error
        except BadAudioError as error:
            self.error = ServerFaultError("synthesis_failed", f"the speech server answered with {error}")
        except EndlessError:
            self.error = ServerFaultError("synthesis_failed", "the speech server's answer goes on without audio")
        except (OSError, http.client.HTTPException, ValueError) as error:
            # Not its message, which may quote what came.
            self.error = self._broken_off(getattr(error, "strerror", "") or type(error).__name__)
        except Exception as error:
            self.error = error
        self.finished.set()
        self._on_news()

    def _broken_off(self, words: str) -> ServerFaultError:
        if self._api.child is not None and not self._cancelled.is_set():
            self._api.child.ended.wait(_DEATH_S)
        when = "in the middle of the audio" if self.rate else "before any audio came"
        return ServerFaultError("synthesis_failed", f"the speech server's connection broke {when} ({words})")

    def _speak(self) -> None:
        began, pause = time.monotonic(), _PAUSE_S
        while not self._cancelled.is_set():
            with contextlib.closing(self._api.connect()) as connection:
                with self._room:
                    self._sock = connection.sock
                if self._cancelled.is_set():
                    break
                with contextlib.closing(self._api.post(connection, self._body)) as answer:
                    self.done += 1
                    if answer.status not in _BUSY:
                        self._hear(answer)
                        return
                    words = _in_words(answer.status, _body(answer))
                    pause = min(_PAUSE_MAX_S, _retry_after(answer) or pause * 2)
            if time.monotonic() + pause - began > self._busy_s:
                self._refused(words)
            self._cancelled.wait(pause)

    def _refused(self, words: str) -> None:
        if self._api.health() >= 500:
            raise ServerFaultError("unavailable", f"the speech server reports a fault; {words}", quotes=True)
        raise EngineError(
            "unavailable",
            f"the speech server was busy for {self._busy_s:.0f} s: it takes fewer jobs at once than [engine.server] "
            f"slots, or serves other clients too; {words}",
            quotes=True,
        )

    def _hear(self, answer: Answer) -> None:
        """Read an answer that is not a refusal for now."""
        kind = answer.headers.get_content_type()
        if answer.status != 200 or kind in ("application/json", "text/html", "text/event-stream"):
            self._fail(answer, kind)
        if self._api.raw_rate and kind.partition("/")[2].removeprefix("x-") in _PACKED:
            raise BadAudioError(f"{kind} in place of raw samples")
        reader = AudioReader(self._api.raw_rate)
        longest_s = _LONGEST_S + _LONGEST_S_PER_CHARACTER * len(self._text)
        count = 0
        while data := answer.next_audio(_READ):
            samples = reader.feed(data)
            self.done += len(data)
            self.rate = reader.rate
            count += len(samples)
            if count > longest_s * (self.rate or 1):
                raise ServerFaultError(
                    "synthesis_failed",
                    f"the speech server made more than {longest_s:.0f} s of audio for {len(self._text)} characters",
                )
            if len(samples) and not self._put(samples):
                return
        if answer.length:
            raise BadAudioError(f"half an answer: {answer.length:,} bytes less than its content-length")
        if problem := reader.end():
            raise BadAudioError(f"half an answer: {problem}" if self.rate else f"an empty answer: {problem}")

    def _put(self, samples: Samples) -> bool:
        """Put samples down, and wait for room. Returns whether to go on."""
        with self._room:
            self._samples.append(samples)
            self._waiting += len(samples)
        self._on_news()
        with self._room:
            self._room.wait_for(lambda: self._waiting < _AHEAD or self._cancelled.is_set())
        return not self._cancelled.is_set()

    def _fail(self, answer: http.client.HTTPResponse, kind: str) -> None:
        """Raise the error of an answer that is no audio."""
        body = _body(answer)
        words, cuda = _in_words(answer.status, body), cuda_errors.words_in(body)
        # The server may quote the text, and a client must not end it with a word.
        if cuda and answer.status >= 500 and cuda not in self._text:
            raise ServerError(f"the speech server reports a CUDA error: {cuda}")
        if answer.status in (400, 404, 413, 422):
            raise EngineError("bad_request", f"the speech server refuses the job; {words}", quotes=True)
        if answer.status == 200:
            words = f"{kind} in place of audio; {words}"
        raise ServerFaultError("synthesis_failed", f"the speech server failed; {words}", quotes=True)


def _body(answer: http.client.HTTPResponse) -> str:
    return answer.read(_ERROR_BYTES).decode(errors="replace")


def _in_words(status: int, body: str) -> str:
    """Status and message of an error, in the form of OpenAI, of FastAPI, or of none."""
    data: Any = body
    with contextlib.suppress(ValueError):
        data = json.loads(body)
    while isinstance(data, dict):
        data = next((data[key] for key in ("message", "detail", "error") if data.get(key)), json.dumps(data))
    words = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    words = _CONTROL.sub(" ", words).strip()[:_QUOTED]
    return f"it answered {status}: {words}" if words else f"it answered {status}"


def _retry_after(answer: http.client.HTTPResponse) -> float:
    """Seconds of the header ``retry-after``; 0 without one."""
    try:
        return max(_PAUSE_S, float(answer.headers.get("retry-after") or 0))
    except ValueError:
        return 0.0
