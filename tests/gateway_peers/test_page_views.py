"""The web page in a browser: voices from a microphone and from files, batches, the keyboard alone, every width."""

from __future__ import annotations

import base64
import io
import subprocess
import wave
import zipfile
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from ..support.gateways import Gateway
from .browser import ELSEWHERE, Visitor, body_of, chromium, microphone, until, until_state, visitor, write_and_speak
from .conftest import needs

__all__ = ["chromium", "microphone", "visitor"]

LINES = """{"uttid": "first", "syn_text": "The first line."}
{"input_text": "The second, in the other dialect.", "output_name": "second.wav", "seed": 7}
{"uttid": "third", "syn_text": "no end
{"uttid": "../fourth", "syn_text": "The fourth."}
"""


def save_voice(page: Page, name: str) -> None:
    page.get_by_label("What is said in it").fill("What the recording says.")
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_label("the speaker has agreed").check()
    page.get_by_role("button", name="Save the voice").click()
    expect(page.get_by_role("status").filter(has_text=f"The voice {name} is yours")).to_be_visible()


def test_a_recorded_voice_is_kept_heard_spoken_with_and_deleted(visitor: Visitor, microphone: Path) -> None:
    page = visitor.open("voices")
    page.get_by_role("button", name="Record", exact=True).click()
    until(page, "document.querySelector('.meter .time')?.textContent.startsWith('0:02')")
    page.get_by_role("button", name="Stop").click()
    # Each thing that is missing is named at its place.
    page.get_by_role("button", name="Save the voice").click()
    assert page.get_by_role("alert").count() == 3
    save_voice(page, "anna")
    page.get_by_role("button", name="Listen to anna").click()
    until(page, "document.querySelector('.waves .time')?.textContent.startsWith('0:01')")
    page.get_by_role("link", name="Speak").click()
    with page.expect_request("**/v1/audio/speech") as request:
        write_and_speak(page, "In a voice of one's own.")
    assert body_of(request.value)["voice"] == "anna"
    until_state(page, "done")
    page.get_by_role("link", name="Voices").click()
    page.get_by_role("button", name="Delete the voice anna").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("button", name="Delete the voice anna")).to_have_count(0)
    # Another voice of that name is heard as it is now.
    page.get_by_label("Choose a file").set_input_files(microphone)
    save_voice(page, "anna")
    with page.expect_request("**/v1/audio/voices/anna/sample"):
        page.get_by_role("button", name="Listen to anna").click()
    assert visitor.complaints == []


@pytest.mark.parametrize(("suffix", "codec"), [("m4a", "aac"), ("webm", "libopus")])
def test_a_file_of_another_format_is_decoded_by_the_browser(
    visitor: Visitor, tmp_path: Path, suffix: str, codec: str
) -> None:
    file = tmp_path / f"voice.{suffix}"
    source = ["-f", "lavfi", "-i", "sine=frequency=300:duration=40"]
    command = [needs("ffmpeg", "ffmpeg"), "-loglevel", "error", *source, "-ac", "2", "-c:a", codec, str(file)]
    subprocess.run(command, check=True)
    page = visitor.open("voices")
    page.get_by_label("Choose a file").set_input_files(file)
    # It is longer than what is used of it.
    expect(page.get_by_text("at most 30 s are used")).to_be_visible()
    save_voice(page, f"bert-{suffix}")
    _, sample, _ = visitor.gateway.ask("GET", f"/v1/audio/voices/bert-{suffix}/sample")
    with wave.open(io.BytesIO(sample)) as recording:
        assert recording.getsampwidth() == 2 and recording.getnframes() == 30 * recording.getframerate()
    assert visitor.complaints == []


#: Two seconds of a tone, as the browser's own recorder writes them, in base64.
RECORDED = """async (type) => {
  const context = new AudioContext();
  const tone = context.createOscillator();
  const target = context.createMediaStreamDestination();
  tone.connect(target);
  tone.start();
  const recorder = new MediaRecorder(target.stream, {mimeType: type});
  const parts = [];
  recorder.ondataavailable = ({data}) => parts.push(data);
  recorder.start();
  await new Promise((resolve) => setTimeout(resolve, 2000));
  await new Promise((resolve) => { recorder.onstop = resolve; recorder.stop(); });
  const bytes = new Uint8Array(await new Blob(parts).arrayBuffer());
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}"""


@pytest.mark.parametrize("suffix", ["webm", "mp4"])
def test_a_file_of_a_browser_s_recorder_becomes_a_voice(visitor: Visitor, suffix: str) -> None:
    page = visitor.open("voices")
    expect(page.get_by_label("Choose a file")).to_be_attached()
    recorded = base64.b64decode(page.evaluate(RECORDED, f"audio/{suffix};codecs=opus"))
    file: Any = {"name": f"memo.{suffix}", "mimeType": f"audio/{suffix}", "buffer": recorded}
    page.get_by_label("Choose a file").set_input_files(file)
    save_voice(page, f"memo-{suffix}")
    _, sample, _ = visitor.gateway.ask("GET", f"/v1/audio/voices/memo-{suffix}/sample")
    with wave.open(io.BytesIO(sample)) as recording:
        assert 1 < recording.getnframes() / recording.getframerate() < 5
    assert visitor.complaints == []


def test_a_recording_is_cloned_without_being_kept(visitor: Visitor, microphone: Path) -> None:
    page = visitor.open("voices")
    page.get_by_role("button", name="Record", exact=True).click()
    until(page, "document.querySelector('.meter .time')?.textContent.startsWith('0:02')")
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="I read the suggested sentence").click()
    page.get_by_label("the speaker has agreed").check()
    page.get_by_role("button", name="Use without saving").click()
    expect(page.get_by_role("button", name="Voice your recording (not saved)")).to_be_visible()
    with page.expect_request("**/v1/audio/speech") as request:
        write_and_speak(page, "Cloned.")
    assert body_of(request.value)["ref_audio"].startswith("UklGR") and body_of(request.value)["ref_text"]
    until_state(page, "done")
    assert visitor.complaints == []
    # A batch keeps it in memory alone, and asks for it again after a reload.
    page.get_by_role("link", name="Batch").click()
    file: Any = {"name": "a.txt", "mimeType": "", "buffer": b"One.\nTwo.\n"}
    page.get_by_label("Drop a file here").set_input_files(file)
    error = {"message": "full", "type": "server_error", "param": None, "code": "queue_full"}
    refused = {"x-should-retry": "true", "retry-after": "60"}
    page.route("**/v1/audio/jobs", lambda route: route.fulfill(status=429, json={"error": error}, headers=refused))
    page.get_by_role("button", name="Speak 2 lines").click()
    expect(page.get_by_text("The queue is full for now.")).to_be_visible()
    assert "UklGR" not in page.evaluate("JSON.stringify(localStorage)")
    page.unroute("**/v1/audio/jobs")
    page.reload()
    needed = page.get_by_role("status").filter(has_text="Your recording was not saved")
    needed.get_by_role("link", name="Voices").click()
    page.get_by_label("Choose a file").set_input_files(microphone)
    page.get_by_label("What is said in it").fill("Hm.")
    page.get_by_label("the speaker has agreed").check()
    page.get_by_role("button", name="Use without saving").click()
    page.get_by_role("link", name="Batch").click()
    with page.expect_request("**/v1/audio/jobs") as request:
        needed.get_by_role("button", name="Go on with this recording").click()
    assert body_of(request.value)["ref_audio"].startswith("UklGR") and body_of(request.value)["ref_text"] == "Hm."
    expect(page.get_by_role("status").filter(has_text="2 of 2 done")).to_be_visible(timeout=20_000)


def test_a_file_that_is_no_audio_and_a_page_without_a_microphone_say_why(chromium: Browser, gateway: Gateway) -> None:
    visitor = Visitor(chromium, gateway, host=ELSEWHERE)
    page = visitor.open("voices")
    expect(page.get_by_text("Browsers give the microphone to pages over https")).to_be_visible()
    expect(page.get_by_role("button", name="Record", exact=True)).to_have_count(0)
    page.get_by_label("Choose a file").set_input_files({"name": "x.mp3", "mimeType": "audio/mpeg", "buffer": b"no"})
    expect(page.get_by_role("alert")).to_contain_text("x.mp3 can't be decoded")
    # Everything else works there too.
    page.get_by_role("link", name="Speak").click()
    write_and_speak(page, "Over plain http.")
    until_state(page, "done")
    visitor.context.close()


def test_a_batch_with_a_bad_line_is_spoken_but_for_that_line(visitor: Visitor) -> None:
    page = visitor.open("batch")
    page.get_by_label("Drop a file here").set_input_files(
        {"name": "lines.jsonl", "mimeType": "application/jsonl", "buffer": LINES.encode()}
    )
    expect(page.get_by_role("status").filter(has_text="4 lines · 1 line can't be spoken")).to_be_visible()
    expect(page.get_by_role("listitem").filter(has_text="no JSON object")).to_have_count(1)
    page.get_by_role("button", name="Speak 3 lines").click()
    expect(page.get_by_role("status").filter(has_text="3 of 3 done")).to_be_visible(timeout=20_000)
    # It is there after a reload, and its jobs are among those of the day.
    page.reload()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download all (ZIP)").click()
    with zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes())) as archive:
        assert archive.namelist() == ["first.wav", "second.wav", "_fourth.wav"] and archive.testzip() is None
        assert all(archive.read(name)[:4] == b"RIFF" for name in archive.namelist())
    assert [job["priority"] for job in visitor.jobs()[:3]] == ["batch"] * 3
    page.get_by_role("link", name="History").click()
    expect(page.get_by_text("The second, in the other dialect.")).to_be_visible()
    assert visitor.complaints == []


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.txt", "One.\r\n\r\n  Two.  \r\n", ["One.", "Two."]),
        ("a.csv", 'name;text;voice\nx;"One; ""two""";tone\ny;Three\n', ['One; "two"', "Three"]),
        ("a.csv", "first,One\nsecond,Two\n", ["One", "Two"]),
        ("a.tsv", "uttid\tsyn_text\nx\tOne\n", ["One"]),
        (
            "a.srt",
            "1\n00:00:01,000 --> 00:00:02,000\n<i>One</i>\nmore.\n\n2\n00:00:03,000 --> 00:00:04,000\nTwo.\n",
            ["One more.", "Two."],
        ),
        ("a.vtt", "WEBVTT\n\n00:01.000 --> 00:02.000\nOne.\n", ["One."]),
        ("a.json", '[{"text": "One"}, {"input_text": "Two"}]', ["One", "Two"]),
        ("a.jsonl", '\ufeff{"text": "One"},\n{"text": "Two"}\n', ["One", "Two"]),
    ],
)
def test_a_batch_is_read_from_files_of_each_kind(visitor: Visitor, name: str, content: str, lines: list[str]) -> None:
    page = visitor.open("batch")
    page.get_by_label("Drop a file here").set_input_files({"name": name, "mimeType": "", "buffer": content.encode()})
    expect(page.locator(".line p:first-child")).to_have_text(lines)
    expect(page.locator(".line.unsent")).to_have_count(len(lines))


def test_a_batch_in_an_unknown_encoding_is_refused(visitor: Visitor) -> None:
    page = visitor.open("batch")
    page.get_by_label("Drop a file here").set_input_files(
        {"name": "a.txt", "mimeType": "", "buffer": "今天天气不错。".encode("gb18030")}
    )
    expect(page.get_by_role("alert")).to_contain_text("no text in UTF-8")


def test_recordings_that_lines_name_are_sent_with_them(visitor: Visitor, microphone: Path) -> None:
    line = '{"uttid": "a", "prompt_text": "Hm.", "prompt_speech": "examples/tone.wav", "syn_text": "As in it."}\n'
    page = visitor.open("batch")
    file: Any = {"name": "a.jsonl", "mimeType": "", "buffer": line.encode()}
    page.get_by_label("Drop a file here").set_input_files(file)
    expect(page.get_by_text("tone.wav was not chosen along with the file")).to_be_visible()
    page.get_by_role("button", name="Another file").click()
    recording: Any = {"name": "tone.wav", "mimeType": "audio/wav", "buffer": microphone.read_bytes()}
    page.get_by_label("Drop a file here").set_input_files([file, recording])
    with page.expect_request("**/v1/audio/jobs") as request:
        page.get_by_role("button", name="Speak 1 line").click()
    assert body_of(request.value)["ref_audio"].startswith("UklGR")
    expect(page.get_by_role("status").filter(has_text="1 of 1 done")).to_be_visible(timeout=20_000)


# --- for everybody


def test_the_keyboard_alone_is_enough(visitor: Visitor) -> None:
    page = visitor.open()
    expect(page.get_by_label("Text to speak")).to_be_focused()
    page.keyboard.type("Without a mouse.")
    # A voice, found by its name.
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className === 'picker'"):
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.locator("dialog .voice-row").first.wait_for()
    page.keyboard.type("high")
    page.keyboard.press("Enter")
    expect(page.locator(".picker")).to_be_focused()
    expect(page.locator(".picker")).to_contain_text("tone-high")
    page.get_by_label("Text to speak").focus()
    page.keyboard.press("Control+Enter")
    until_state(page, "done")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('.dock')"):
            break
    page.keyboard.press("Tab")
    expect(page.get_by_label("Position in the audio")).to_be_focused()
    page.keyboard.press("Home")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.locator(".dock").get_by_label("Download")).to_be_focused()
    assert visitor.complaints == []


#: What axe finds, when nothing moves any more: what is moving has other colours on its way.
AXE = """(place) => Promise.all(document.getAnimations()
    .map((one) => one.effect.getComputedTiming().iterations === Infinity ? 0 : one.finished))
  .then(() => axe.run(place))
  .then(({violations}) => violations.map(({id, impact, nodes}) =>
    ({id, impact, nodes: nodes.map(({target, failureSummary}) => [String(target), failureSummary])})))"""


@pytest.mark.parametrize(
    ("width", "locale", "scheme"),
    [(360, "zh-CN", "light"), (360, "en-US", "dark"), (768, "en-US", "light"), (1440, "zh-CN", "dark")],
)
def test_every_view_is_accessible_and_fits(
    chromium: Browser, gateway: Gateway, node_modules: Path, *, width: int, locale: str, scheme: str
) -> None:
    options: dict[str, Any] = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme, "locale": locale}
    visitor = Visitor(chromium, gateway, bypass_csp=True, **options)
    page = visitor.open()
    page.locator("#text").fill("Hello, 你好。")
    page.locator(".speak-button").click()
    until_state(page, "done")
    page.add_script_tag(path=node_modules / "axe-core/axe.min.js")
    for view in ("speak", "voices", "history", "batch"):
        page.goto(f"http://127.0.0.1:{gateway.port}/#{view}")
        page.locator("main > *").first.wait_for()
        if view == "batch":
            file: Any = {"name": "lines.jsonl", "mimeType": "", "buffer": LINES.encode()}
            page.locator(".drop input").set_input_files(file)
            page.locator(".lines").wait_for()
        if view == "voices":
            page.locator(".voice-card").first.wait_for()
        found = page.evaluate(AXE, "html")
        assert [one for one in found if one["impact"] in ("serious", "critical")] == [], (view, found)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view
    page.locator("nav a").first.click()
    page.locator(".picker").click()
    page.locator("dialog[open] .voice-row").first.wait_for()
    found = page.evaluate(AXE, "dialog[open]")
    assert [one for one in found if one["impact"] in ("serious", "critical")] == []
    assert visitor.complaints == []
    visitor.context.close()
