"""A speech server with the habits of real ones, for the engine ``server``: ``python speech_server.py PORT [START...]``.

It speaks a tone of a tenth of a second for each character. The first word of a text says what goes wrong, START what
goes wrong at the start. It needs nothing but Python.
"""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RATE = 24_000
START = set(sys.argv[2:])
LEAKED: list[Any] = []
#: Requests at this moment, the most there were, and how often each text was asked for.
STATE: dict[str, Any] = {"now": 0, "most": 0, "tries": {}, "closed": [], "sent": {}, "bodies": [], "broken": False}
LOCK = threading.Lock()


#: Answers without an end: how each begins, what comes again and again, and the pauses in seconds.
ENDLESS = {
    "continues": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.001),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X-And-So-On: yes\r\n", 0.001),
    "trickles": (b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.01),
    "explains": (b"HTTP/1.1 500 Sorry\r\n\r\n", b"x", 0.01),
    "trailers": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: " + b"x" * 4_000 + b"\r\n", 0.001),
}


@functools.cache
def tone(text: str, rate: int = RATE) -> bytes:
    pitch = 200 + sum(text.encode()) % 400
    second = [int(9_000 * math.sin(2 * math.pi * pitch * one / rate)) for one in range(rate)]
    return (struct.pack(f"<{rate}h", *second) * (1 + len(text) // 10))[: rate * len(text) // 10 * 2]


def wav(data: bytes, rate: int = RATE, size: int | None = None) -> bytes:
    size = len(data) if size is None else size
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, rate * 2, 2, 16)
    return b"RIFF\xff\xff\xff\xffWAVE" + form + struct.pack("<4sI", b"data", size) + data


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/health" and "no-health" not in START:
            self.answer({"status": "dead" if STATE["broken"] else "ok"}, 503 if STATE["broken"] else 200)
        elif self.path == "/v1/models" and "no-health" not in START:
            self.answer({"object": "list", "data": [{"id": "tone-1"}]})
        elif self.path == "/v1/audio/voices" and "no-health" not in START:
            self.answer({"voices": ["low", {"id": "high", "name": "high"}, "low", 7, ""]})
        elif self.path == "/state":
            self.answer(STATE)
        else:
            self.answer({"detail": "Not Found"}, 404)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = asked["input"]
        with LOCK:
            STATE["now"] += 1
            STATE["most"] = max(STATE["most"], STATE["now"])
            STATE["tries"][text] = STATE["tries"].get(text, 0) + 1
            STATE["bodies"].append({name: str(value)[:40] for name, value in asked.items()})
        try:
            self.speak(asked, text, text.partition(" ")[0])
        except (BrokenPipeError, ConnectionResetError):
            STATE["closed"].append(text)
            self.close_connection = True
        finally:
            with LOCK:
                STATE["now"] -= 1

    def speak(self, asked: dict[str, Any], text: str, fault: str) -> None:
        tries = STATE["tries"][text]
        if STATE["broken"]:
            self.answer({"error": {"message": "EngineDeadError"}}, 500)
        elif "loads" in START and sum(STATE["tries"].values()) < 3:
            self.answer({"error": {"message": "the model is loading"}}, 500)
        elif "key" in START and self.headers.get("Authorization") != "Bearer open sesame":
            self.answer({"error": {"message": "Unauthorized"}}, 401)
        elif fault == "json":
            self.answer({"error": {"message": f"can't say {text!r}"}})
        elif fault == "refuse":
            self.answer({"detail": {"error": "validation_error", "message": f"can't say {text!r}"}}, 400)
        elif fault == "fail":
            self.answer({"error": {"message": f"failed at {text!r}"}}, 500)
        elif fault == "cuda":
            self.answer(
                {"error": {"message": f"CUDA error: an illegal memory access was encountered at {text!r}"}}, 500
            )
        elif fault == "break":
            STATE["broken"] = True
            self.answer({"error": {"message": "EngineDeadError"}}, 500)
        elif fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault in ("busy", "full") and (fault == "full" or tries < 3):
            self.answer(
                {"error": {"message": "too many requests"}}, 429 if fault == "busy" else 503, **{"Retry-After": "0.1"}
            )
        elif fault == "close":
            self.close_connection = True
        elif fault == "hang":
            # Until the client leaves.
            self.connection.recv(1)
            STATE["closed"].append(text)
            self.close_connection = True
        elif fault in ENDLESS:
            begin, again, pause_s = ENDLESS[fault]
            self.wfile.write(begin)
            while True:
                self.wfile.write(again)
                time.sleep(pause_s)
        elif fault == "mp3":
            self.send(b"ID3" + bytes(9_000), "audio/mpeg")
        elif fault == "empty":
            self.send(b"")
        elif fault == "half":
            data = wav(tone(text))
            self.head(len(data))
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif fault == "short":
            self.stream(wav(tone(text), size=1_000_000))
        elif fault == "torn":
            self.stream(wav(tone(text)), whole=False)
        elif fault == "rate":
            self.send(wav(tone(text, 16_000), 16_000))
        elif fault == "endless":
            self.head(None)
            self.chunk(wav(b"", size=0xFFFFFFFF))
            block = bytes(480_000)
            while True:
                self.chunk(block)
                STATE["sent"][text] = STATE["sent"].get(text, 0) + len(block)
        elif fault == "slowly":
            self.head(None)
            self.chunk(wav(b"", size=0xFFFFFFFF))
            for place in range(len(text)):
                self.chunk(tone(text[place]))
                time.sleep(0.02)
            self.chunk(b"")
        else:
            if fault == "leak":
                LEAKED.append(b"x" * (32 << 20))
            if fault == "print":
                print(f"<3>speaking {text}", flush=True)
            if fault == "flood":
                sys.stdout.write(f"<3>speaking {text}\n" * 100_000)
                sys.stdout.flush()
            if fault == "fork":
                # A child in a group of its own that holds the output open.
                subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
            if asked["response_format"] == "pcm":
                self.send(tone(text), "audio/pcm")
            else:
                self.stream(wav(tone(text), size=0xFFFFFFFF))

    def stream(self, data: bytes, *, whole: bool = True) -> None:
        self.head(None)
        for place in range(0, len(data), 4_801):
            self.chunk(data[place : place + 4_801])
        if whole:
            self.chunk(b"")
        self.close_connection = not whole

    def answer(self, body: Any, status: int = 200, **headers: str) -> None:
        self.send(json.dumps(body).encode(), "application/json", status, **headers)

    def send(self, data: bytes, kind: str = "audio/wav", status: int = 200, **headers: str) -> None:
        self.head(len(data), kind, status, **headers)
        self.wfile.write(data)

    def head(self, length: int | None, kind: str = "audio/wav", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header(*(("Transfer-Encoding", "chunked") if length is None else ("Content-Length", str(length))))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def main() -> None:
    if "print" in START:
        print("loading the model\nTraceback:\nOSError: the weights are missing", flush=True)
        sys.exit(3)
    if "slow" in START:
        time.sleep(0.5)
    if "never" in START:
        time.sleep(600)
    if "deaf" in START:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "vram" in START:
        from glmtts.daemon.engines.fault.gpu import FaultGpu

        LEAKED.append(gpu := FaultGpu())
        LEAKED.append(gpu.take(1_500 << 20))
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Server)
    server.daemon_threads = True
    print("listening", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
