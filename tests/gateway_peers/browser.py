"""A browser before the gateway's page, with a microphone that plays a file and an ear at its loudspeaker."""

from __future__ import annotations

import json
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, Route, sync_playwright

from ..support.gateways import Gateway
from .conftest import needs

#: An address that is not this machine's own, so that the page is no secure context.
ELSEWHERE = "10.0.0.7"
#: A name that its owner has resolve to this machine.
REBOUND = "speech.example"
#: Speech that takes as long as it lasts, in pieces.
SLOW = {"fault": "audio", "seconds": 6.0, "rtf": 1.0, "segments": 6}

#: Every connection to the loudspeaker also goes to an analyser; loudest() is what it hears.
_EAR = """
const connect = AudioNode.prototype.connect;
const ears = [];
AudioNode.prototype.connect = function (target, ...others) {
  if (target instanceof AudioDestinationNode) {
    const ear = target.context.createAnalyser();
    ears.push(ear);
    connect.call(this, ear);
  }
  return connect.call(this, target, ...others);
};
window.loudest = () => Math.max(0, ...ears.map((ear) => {
  const samples = new Float32Array(ear.fftSize);
  ear.getFloatTimeDomainData(samples);
  return Math.max(...samples.map(Math.abs));
}));
"""


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the microphone hears: ten seconds of a tone."""
    file = tmp_path_factory.mktemp("microphone") / "tone.wav"
    samples = 12_000 * numpy.sin(numpy.arange(10 * 48_000) * 2 * numpy.pi * 300 / 48_000)
    with wave.open(str(file), "wb") as out:
        out.setparams((1, 2, 48_000, 0, "NONE", ""))
        out.writeframes(samples.astype("<i2").tobytes())
    return file


@pytest.fixture(scope="module")
def chromium(microphone: Path) -> Iterator[Browser]:
    arguments = [
        "--no-sandbox",
        "--disable-background-networking",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}",
        f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1, MAP {REBOUND} 127.0.0.1",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=needs("chromium", "chromium"), args=arguments)
        yield browser
        browser.close()


class Visitor:
    """A browser's profile, and what its pages complain about."""

    def __init__(self, browser: Browser, gateway: Gateway, host: str = "127.0.0.1", **options: Any) -> None:
        self.gateway = gateway
        self.host = host
        self.context: BrowserContext = browser.new_context(**{"locale": "en-US"} | options)
        self.context.set_default_timeout(15_000)
        self.context.add_init_script(_EAR)
        self.complaints: list[str] = []
        self.sent: list[dict[str, Any]] = []

    def open(self, view: str = "speak") -> Page:
        page = self.context.new_page()
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(f"http://{self.host}:{self.gateway.port}/#{view}")
        return page

    def options_for_speech(self, page: Page, options: dict[str, Any]) -> None:
        """Have the fault engine do something particular with what this page sends."""

        def with_options(route: Route) -> None:
            body = body_of(route.request)
            self.sent.append(body)
            route.continue_(post_data=json.dumps(body | {"options": options}))

        page.route("**/v1/audio/speech", with_options)

    def jobs(self) -> list[dict[str, Any]]:
        """This visitor's jobs, the newest first."""
        return list(self.gateway.ask("GET", "/v1/audio/jobs")[1]["data"])


@pytest.fixture
def visitor(chromium: Browser, gateway: Gateway) -> Iterator[Visitor]:
    visitor = Visitor(chromium, gateway)
    yield visitor
    visitor.context.close()


def body_of(request: Request) -> dict[str, Any]:
    """What the page sends."""
    return dict(request.post_data_json or {})


def write_and_speak(page: Page, text: str) -> None:
    page.get_by_label("Text to speak").fill(text)
    page.get_by_role("button", name="Speak", exact=True).click()


def until(page: Page, expression: str, patience_s: float = 15.0) -> None:
    """Wait until it is true in the page. (Playwright's own wait is evaluated in the page, which forbids that.)"""
    deadline = time.monotonic() + patience_s
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"not within {patience_s} s: {expression}"
        page.wait_for_timeout(20)


def until_heard(page: Page) -> None:
    until(page, "loudest() > 0.01")


def until_state(page: Page, state: str, timeout_s: float = 20) -> None:
    page.wait_for_selector(f"[data-state={state}]", timeout=timeout_s * 1_000)
