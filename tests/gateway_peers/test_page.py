"""The web page in a browser: to write and to hear, to be refused, to lose the connection, to close the tab."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from ..process.conftest import Daemon, Start
from ..support.gateways import Gateway, keys_for
from .browser import (
    ELSEWHERE,
    REBOUND,
    SLOW,
    Visitor,
    chromium,
    microphone,
    until,
    until_heard,
    until_state,
    visitor,
    write_and_speak,
)

__all__ = ["chromium", "microphone", "visitor"]


def test_a_text_is_heard_while_it_is_made_and_then_is_a_file(visitor: Visitor) -> None:
    page = visitor.open()
    visitor.options_for_speech(page, SLOW)
    write_and_speak(page, "The train leaves at noon.")
    until_heard(page)
    assert visitor.jobs()[0]["status"] == "running"
    expect(page.get_by_role("status").filter(has_text=re.compile("part . of 6"))).to_be_visible()
    until_state(page, "done")
    # The file in place of what was streamed: it has its length, is sought in, and can be saved.
    position = page.get_by_label("Position in the audio")
    expect(position).to_have_attribute("max", "6.00")
    with page.expect_download() as download:
        page.locator(".dock").get_by_label("Download").click()
    assert download.value.suggested_filename == "The train leaves at noon.wav"
    data = Path(download.value.path()).read_bytes()
    assert data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") == len(data) - 8 == 36 + 6 * 48_000
    # It may be at its end by now.
    position.fill("4.5")
    if (play := page.locator(".dock").get_by_role("button", name="Play")).count():
        play.click()
    until(page, "/^0:0[56]/.test(document.querySelector('.waves .time').textContent)")
    assert visitor.complaints == []


@pytest.mark.parametrize("format", ["mp3", "opus", "flac"])
def test_every_format_is_heard_while_it_is_made(visitor: Visitor, format: str) -> None:
    page = visitor.open()
    visitor.options_for_speech(page, SLOW | {"seconds": 4.0})
    page.get_by_label("Format").select_option(format)
    write_and_speak(page, f"As {format}.")
    until_heard(page)
    assert visitor.jobs()[0]["status"] == "running" and visitor.sent[-1]["response_format"] == format
    until_state(page, "done")
    assert visitor.complaints == []


def test_a_closed_tab_loses_nothing(visitor: Visitor) -> None:
    page = visitor.open()
    visitor.options_for_speech(page, SLOW | {"seconds": 12.0})
    write_and_speak(page, "This goes on without a listener.")
    until_state(page, "speaking")
    page.close()
    page = visitor.open()
    # The next tab follows it to its end.
    until_state(page, "speaking")
    until_state(page, "done")
    assert visitor.jobs()[0]["status"] == "done"
    page.get_by_role("link", name="History").click()
    row = page.get_by_role("listitem").filter(has_text="This goes on without a listener.")
    row.get_by_role("button", name="Play").click()
    expect(row.get_by_role("button", name="Pause")).to_be_visible()
    row.get_by_role("button", name="Again").click()
    expect(page.get_by_label("Text to speak")).to_have_value("This goes on without a listener.")
    page.get_by_role("link", name="History").click()
    row.get_by_role("button", name="Remove").click()
    expect(row).to_have_count(0)
    assert visitor.complaints == []


def test_a_take_that_is_cancelled_is_cancelled_in_the_daemon(visitor: Visitor) -> None:
    page = visitor.open()
    visitor.options_for_speech(page, SLOW)
    write_and_speak(page, "Never mind.")
    until_state(page, "speaking")
    with page.expect_response(lambda answer: answer.request.method == "DELETE"):
        page.locator(".dock").get_by_label("Cancel").click()
    assert visitor.jobs()[0]["status"] == "cancelled"


def test_those_who_wait_see_how_many_are_ahead(visitor: Visitor, gateway: Gateway) -> None:
    body = {"input": "x", "options": SLOW | {"segments": 1, "seconds": 3.0}}
    ids = [gateway.ask("POST", "/v1/audio/jobs", body)[1]["id"] for _ in range(3)]
    page = visitor.open()
    write_and_speak(page, "My turn?")
    expect(page.get_by_role("status").filter(has_text="2 ahead of you")).to_be_visible()
    for id in ids:
        gateway.ask("DELETE", f"/v1/audio/jobs/{id}")
    until_state(page, "done")


def test_a_refusal_counts_down_and_tries_again(chromium: Browser, start: Start, tmp_path: Path) -> None:
    daemon = start(limits={"rate": "1/second"}, queue={"max_waiting": 1})
    gateway = Gateway(daemon, tmp_path)
    visitor = Visitor(chromium, gateway)
    try:
        page = visitor.open()
        # One segment: between two, another's job would have its turn.
        visitor.options_for_speech(page, SLOW | {"seconds": 600.0, "segments": 1})
        write_and_speak(page, "The first.")
        until_state(page, "speaking")
        page.unroute("**/v1/audio/speech")
        # Another's is in the queue's one place.
        daemon.client().send("synthesize", text="x", options={"fault": "sleep", "seconds": 0.1})
        daemon.until(lambda: daemon.status()["queue"]["waiting"] == 1, "the place is taken")
        page.get_by_role("button", name="Speak", exact=True).click()
        until_state(page, "refused")
        expect(page.get_by_role("status").filter(has_text=re.compile(r"Trying again in \d+ s"))).to_be_visible()
        first = visitor.jobs()[0]["id"]
        assert gateway.ask("DELETE", f"/v1/audio/jobs/{first}")[0] < 300
        until_state(page, "done", 40)
        # It was one request, sent several times, and so one job.
        assert [job["status"] for job in visitor.jobs()] == ["done", "cancelled"]
    finally:
        for job in visitor.jobs():
            gateway.ask("DELETE", f"/v1/audio/jobs/{job['id']}")
        visitor.context.close()
        gateway.close()


def test_a_daemon_that_is_killed_and_comes_back_finishes_what_was_heard(
    chromium: Browser, start: Start, tmp_path: Path
) -> None:
    daemon = start()
    gateway = Gateway(daemon, tmp_path)
    visitor = Visitor(chromium, gateway)
    try:
        page = visitor.open()
        visitor.options_for_speech(page, SLOW)
        write_and_speak(page, "It goes on.")
        until_heard(page)
        daemon.kill()
        until_state(page, "reconnecting")
        expect(page.get_by_role("alert")).to_contain_text("The speech service is away")
        daemon.restart()
        until_state(page, "done", 40)
        expect(page.get_by_role("alert")).to_have_count(0)
        expect(page.get_by_label("Position in the audio")).to_have_attribute("max", "6.00")
    finally:
        visitor.context.close()
        gateway.close()


def test_a_gateway_that_is_away_is_waited_for(chromium: Browser, daemon: Daemon, tmp_path: Path) -> None:
    gateway = Gateway(daemon, tmp_path)
    visitor = Visitor(chromium, gateway)
    try:
        page = visitor.open()
        expect(page.get_by_label("Text to speak")).to_be_visible()
        gateway.close()
        write_and_speak(page, "Are you there?")
        expect(page.get_by_role("alert")).to_contain_text("No connection")
        gateway.start()
        until_state(page, "done", 40)
        expect(page.get_by_role("alert")).to_have_count(0)
    finally:
        visitor.context.close()
        gateway.close()


# --- languages and keys


def test_it_speaks_the_browser_s_language_and_the_chosen_one(chromium: Browser, gateway: Gateway) -> None:
    visitor = Visitor(chromium, gateway, locale="zh-CN")
    page = visitor.open()
    expect(page.get_by_role("button", name="合成", exact=True)).to_be_visible()
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    page.get_by_role("button", name="English").click()
    expect(page.get_by_role("button", name="Speak", exact=True)).to_be_visible()
    page.reload()
    expect(page.get_by_role("button", name="Speak", exact=True)).to_be_visible()
    assert visitor.complaints == []
    visitor.context.close()


def test_a_key_is_asked_for_once_and_kept_where_no_script_can_read_it(
    chromium: Browser, daemon: Daemon, tmp_path: Path
) -> None:
    file, headers = keys_for(tmp_path, "anna")
    key = headers["anna"]["Authorization"].removeprefix("Bearer ")
    gateway = Gateway(daemon, tmp_path, f'api_keys = "{file}"')
    visitor = Visitor(chromium, gateway)
    try:
        page = visitor.open()
        page.get_by_label("API key").fill("glm-wrong")
        page.get_by_role("button", name="Continue").click()
        expect(page.get_by_role("alert")).to_have_text("This key is not known here.")
        visitor.complaints.clear()
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Continue").click()
        write_and_speak(page, "With a key.")
        until_state(page, "done")
        (cookie,) = visitor.context.cookies()
        assert cookie["httpOnly"] and cookie["sameSite"] == "Strict" and page.evaluate("document.cookie") == ""
        assert key not in json.dumps(page.evaluate("() => ({...localStorage})"))
        # A gateway that was started anew knows it, and a page of another site can't use it.
        gateway.close()
        gateway.start()
        page.reload()
        expect(page.get_by_label("Text to speak")).to_be_visible()
        status, _, _ = gateway.ask(
            "POST", "/v1/audio/speech", {"input": "x"}, Cookie=f"glmtts_key={key}", Origin="http://evil.example"
        )
        assert status == 403
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("API key")).to_be_visible()
        assert visitor.context.cookies() == []
    finally:
        visitor.context.close()
        gateway.close()


def test_the_next_customer_of_a_browser_sees_nothing_of_the_last(
    chromium: Browser, daemon: Daemon, tmp_path: Path
) -> None:
    file, headers = keys_for(tmp_path, "anna", "bert")
    gateway = Gateway(daemon, tmp_path, f'api_keys = "{file}"')
    visitor = Visitor(chromium, gateway)

    def log_in(page: Page, name: str) -> None:
        page.get_by_label("API key").fill(headers[name]["Authorization"].removeprefix("Bearer "))
        page.get_by_role("button", name="Continue").click()

    def kept(page: Page) -> set[str]:
        return set(page.evaluate("Object.keys(localStorage)"))

    try:
        page = visitor.open()
        text = page.get_by_label("Text to speak")
        log_in(page, "anna")
        # What is chosen before the page is the customer's is not kept.
        expect(text).to_be_visible()
        page.get_by_role("button", name="中文").click()
        page.get_by_role("button", name="English").click()
        write_and_speak(page, "Anna's secret.")
        until_state(page, "done")
        other_tab = visitor.open()
        expect(other_tab.get_by_label("Text to speak")).to_have_value("Anna's secret.")
        page.get_by_role("button", name="Log out").click()
        for tab in (page, other_tab):
            expect(tab.get_by_label("API key")).to_be_visible()
        assert kept(page) == {"glmtts.language"}
        log_in(page, "bert")
        expect(text).to_have_value("")
        text.fill("Bert's secret.")
        batch = {"name": "bert.txt", "mimeType": "text/plain", "buffer": b"Bert's line."}
        page.get_by_role("link", name="Batch").click()
        page.get_by_label("Drop a file here").set_input_files(batch)  # type: ignore[arg-type]
        expect(page.get_by_text("Bert's line.")).to_be_visible()
        # His cookie runs out. He goes on where he was, and another customer in his place begins anew.
        for name, found in (("bert", 1), ("anna", 0)):
            visitor.context.clear_cookies()
            # Each view asks for the jobs, unless an answer is on its way.
            other_view = "location.hash = location.hash === '#history' ? 'voices' : 'history'"
            until(page, f"({other_view}, document.getElementById('key') !== null)")
            log_in(page, name)
            page.get_by_role("link", name="Batch").click()
            expect(page.get_by_text("Bert's line.").or_(page.get_by_label("Drop a file here"))).to_be_visible()
            expect(page.get_by_text("Bert's line.")).to_have_count(found)
            page.get_by_role("link", name="Speak").click()
            expect(text).to_have_value("Bert's secret." if found else "")
        assert kept(page) == {"glmtts.language", "glmtts.customer"}
    finally:
        visitor.context.close()
        gateway.close()


def test_a_page_of_another_site_can_not_use_the_visitor_s_address(visitor: Visitor, gateway: Gateway) -> None:
    other = Visitor(visitor.context.browser, gateway, host=ELSEWHERE)  # type: ignore[arg-type]  # it has one
    page = other.open()
    expect(page.get_by_label("Text to speak")).to_be_visible()
    before = len(visitor.jobs())
    status = page.evaluate(
        "port => fetch(`http://127.0.0.1:${port}/v1/audio/jobs`, "
        "{method: 'POST', mode: 'no-cors', body: '{\"input\": \"x\"}'}).then(() => 'sent', () => 'blocked')",
        gateway.port,
    )
    assert status in ("sent", "blocked")
    assert len(visitor.jobs()) == before
    # A name that resolves to this machine opens nothing either.
    page.goto(f"http://{REBOUND}:{gateway.port}/")
    expect(page.get_by_text("is no name of this machine")).to_be_visible()
    other.context.close()
