"""The web page in a browser under what visitors do to it: odd texts, two tabs, no storage, a bad connection."""

from __future__ import annotations

import json
import wave

import pytest
from playwright.sync_api import Browser, Route, expect

from ..support.gateways import Gateway
from .browser import SLOW, Visitor, body_of, chromium, microphone, until, until_state, visitor, write_and_speak

__all__ = ["chromium", "microphone", "visitor"]


@pytest.mark.parametrize(
    "text",
    ["Family: " + "👩‍👩‍👧 " * 40, "مرحبا، كيف حالك؟", "<b>&amp;</b> 'x' \u202e", "half \ud83d", "a\u0000b\u0007"],
)
def test_an_odd_text_is_spoken_and_listed(visitor: Visitor, text: str) -> None:
    page = visitor.open()
    expect(page.get_by_label("Text to speak")).to_be_visible()
    # (Playwright can't pass half a character.)
    page.evaluate(
        "codes => { const area = document.getElementById('text'); area.value = String.fromCharCode(...codes);"
        " area.dispatchEvent(new Event('input', {bubbles: true})); }",
        [int.from_bytes(pair) for pair in batched(text.encode("utf-16-be", "surrogatepass"))],
    )
    page.get_by_role("button", name="Speak", exact=True).click()
    until_state(page, "done")
    label = visitor.jobs()[0]["label"]
    # One line, cut between characters.
    assert 0 < len(label) <= 120 and label == " ".join(label.split()) and label.encode()
    page.get_by_role("link", name="History").click()
    expect(page.locator(".job-text").first).to_be_visible()
    assert visitor.complaints == []


def batched(data: bytes) -> list[bytes]:
    return [data[at : at + 2] for at in range(0, len(data), 2)]


def test_a_text_that_is_too_long_is_spoken_in_parts(visitor: Visitor) -> None:
    page = visitor.open()
    text = "This is a sentence of a long text. " * 350
    page.get_by_label("Text to speak").fill(text)
    expect(page.get_by_role("button", name="Speak", exact=True)).to_be_disabled()
    page.get_by_role("button", name="Speak in parts").click()
    expect(page.locator(".line.unsent")).to_have_count(3)
    parts = page.evaluate("JSON.parse(localStorage['glmtts.batch']).lines.map(({text}) => text)")
    assert " ".join(parts) == text.strip() and all(part.endswith(".") and len(part) <= 5_000 for part in parts)
    assert visitor.complaints == []


def test_a_very_long_text_does_not_stop_the_page(visitor: Visitor) -> None:
    page = visitor.open()
    page.get_by_label("Text to speak").fill("长文本没有句号" * 15_000)
    expect(page.get_by_text("100,000 characters too many for once")).to_be_visible()
    page.get_by_role("button", name="Speak in parts").click()
    expect(page.locator(".line.unsent")).to_have_count(21)


def test_a_text_without_a_word_is_not_sent(visitor: Visitor) -> None:
    page = visitor.open()
    page.get_by_label("Text to speak").fill("👍 … !")
    expect(page.get_by_text("No word to speak yet")).to_be_visible()
    expect(page.get_by_role("button", name="Speak", exact=True)).to_be_disabled()


def test_a_double_click_is_one_job(visitor: Visitor) -> None:
    page = visitor.open()
    before = len(visitor.jobs())
    page.get_by_label("Text to speak").fill("Once.")
    page.get_by_role("button", name="Speak", exact=True).dblclick()
    until_state(page, "done")
    assert len(visitor.jobs()) == before + 1


def test_two_tabs_keep_what_both_have_done(visitor: Visitor) -> None:
    one, other = visitor.open(), visitor.open()
    long = "long enough to be cut short in a label " * 5
    texts = {one: f"First {long}", other: f"Second {long}"}
    for page, text in texts.items():
        page.bring_to_front()
        write_and_speak(page, text)
        until_state(page, "done")
    # The whole texts, which only the browser has.
    kept = one.evaluate("Object.values(JSON.parse(localStorage['glmtts.takes'])).map(({text}) => text)")
    assert set(kept) == {text.strip() for text in texts.values()}
    one.bring_to_front()
    one.get_by_role("link", name="History").click()
    row = one.get_by_role("listitem").filter(has_text=texts[other][:30])
    row.get_by_role("button", name="Again").click()
    expect(one.get_by_label("Text to speak")).to_have_value(texts[other].strip())


def test_a_batch_is_the_same_in_two_tabs(visitor: Visitor) -> None:
    one, other = visitor.open("batch"), visitor.open("batch")
    lines = "".join(f"Line {number}.\n" for number in range(5))
    one.bring_to_front()
    one.get_by_label("Drop a file here").set_input_files(
        {"name": "a.txt", "mimeType": "text/plain", "buffer": lines.encode()}
    )
    before = len(visitor.jobs())
    one.get_by_role("button", name="Speak 5 lines").click()
    for page in (other, one):
        page.bring_to_front()
        expect(page.get_by_role("status").filter(has_text="5 of 5 done")).to_be_visible(timeout=20_000)
    # A third goes on with nothing that is done.
    visitor.open("batch").get_by_text("5 of 5 done").wait_for()
    assert len(visitor.jobs()) == before + 5


def test_a_batch_that_is_stopped_leaves_no_line_that_was_on_its_way(visitor: Visitor) -> None:
    page = visitor.open("batch")
    page.get_by_label("Drop a file here").set_input_files(
        {"name": "a.txt", "mimeType": "text/plain", "buffer": b"On its way."}
    )
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/v1/audio/jobs", hold)
    with page.expect_request("**/v1/audio/jobs"):
        page.get_by_role("button", name="Speak 1 line").click()
    page.get_by_role("button", name="Stop").click()
    with page.expect_response(lambda answer: answer.request.method == "DELETE"):
        held[0].continue_(post_data=json.dumps(body_of(held[0].request) | {"options": SLOW}))
    assert visitor.jobs()[0]["label"] == "On its way."
    # A job that runs already ends soon after.
    until(
        page,
        "fetch('v1/audio/jobs?limit=1').then((one) => one.json()).then(({data}) => data[0].status === 'cancelled')",
    )
    expect(page.locator(".line.cancelled")).to_have_count(1)


def test_without_storage_it_works_all_the_same(visitor: Visitor) -> None:
    visitor.context.add_init_script(
        "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError'); }})"
    )
    page = visitor.open()
    write_and_speak(page, "Nothing is kept.")
    until_state(page, "done")
    page.get_by_role("button", name="中文").click()
    expect(page.get_by_role("button", name="合成", exact=True)).to_be_visible()
    assert visitor.complaints == []


def test_a_slow_connection_is_played_with_gaps_and_to_the_end(visitor: Visitor) -> None:
    page = visitor.open()
    visitor.options_for_speech(page, SLOW | {"seconds": 4.0, "rtf": 0.0})
    page.get_by_label("Text to speak").fill("Drop by drop.")
    network = visitor.context.new_cdp_session(page)
    # Half of what the audio needs.
    limits = {"offline": False, "latency": 300, "downloadThroughput": 32_000, "uploadThroughput": 32_000}
    network.send("Network.emulateNetworkConditions", limits)
    page.get_by_role("button", name="Speak", exact=True).click()
    until_state(page, "speaking")
    until(page, "document.querySelector('.waves.starved') !== null")
    until_state(page, "done", 40)
    expect(page.get_by_label("Position in the audio")).to_have_attribute("max", "4.00")


def test_a_page_that_loads_without_a_connection_begins_when_it_is_back(visitor: Visitor) -> None:
    page = visitor.context.new_page()
    lost = 0

    def lose(route: Route) -> None:
        nonlocal lost
        lost += 1
        route.abort()

    page.route("**/en.json", lose)
    page.goto(f"http://127.0.0.1:{visitor.gateway.port}/")
    until(page, "document.getElementById('boot') !== null")
    page.wait_for_event("requestfailed")
    page.unroute("**/en.json")
    expect(page.get_by_label("Text to speak")).to_be_visible()
    assert lost


def test_offline_is_said_and_gone_on_from(visitor: Visitor) -> None:
    page = visitor.open()
    expect(page.get_by_label("Text to speak")).to_be_visible()
    visitor.context.set_offline(True)
    write_and_speak(page, "Through a tunnel.")
    expect(page.get_by_role("alert")).to_contain_text("No connection")
    # Words that are fetched can't be fetched now.
    page.get_by_role("button", name="中文").click()
    visitor.context.set_offline(False)
    until_state(page, "done", 40)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_an_error_that_no_part_expects_is_shown(visitor: Visitor) -> None:
    page = visitor.open()
    expect(page.get_by_label("Text to speak")).to_be_visible()
    page.evaluate("setTimeout(() => { throw new Error('the fault'); })")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("Something unexpected happened (the fault).")
    alert.get_by_role("button", name="Reload").click()
    expect(page.get_by_label("Text to speak")).to_be_visible()
    expect(alert).to_have_count(0)


def test_a_failure_is_said_in_words_with_what_to_do(chromium: Browser, gateway: Gateway) -> None:
    visitor = Visitor(chromium, gateway, locale="zh-CN")
    page = visitor.open()
    visitor.options_for_speech(page, {"fault": "raise"})
    page.locator("#text").fill("坏。")
    page.locator(".speak-button").click()
    until_state(page, "failed")
    expect(page.locator(".dock-status")).to_contain_text("引擎无法合成这段文字，请修改后重试")
    page.unroute("**/v1/audio/speech")
    page.get_by_role("button", name="重试").click()
    until_state(page, "done")
    visitor.context.close()


def test_a_service_that_keeps_nothing_is_heard_and_saved_all_the_same(visitor: Visitor) -> None:
    page = visitor.open()
    sent = []

    def on_a_full_disk(route: Route) -> None:
        body = body_of(route.request)
        sent.append(body["durable"])
        if body["durable"]:
            error = {
                "message": "durable: the disk is full.",
                "type": "server_error",
                "param": None,
                "code": "unavailable",
            }
            headers = {"x-should-retry": "true", "retry-after": "5"}
            route.fulfill(status=503, json={"error": error}, headers=headers)
        else:
            route.continue_()

    page.route("**/v1/audio/speech", on_a_full_disk)
    write_and_speak(page, "Nothing of this is kept by the service.")
    until_state(page, "done")
    assert sent == [True, False]
    with page.expect_download() as download:
        page.locator(".dock").get_by_label("Download").click()
    with wave.open(str(download.value.path())) as file:
        assert file.getnframes() == round(24_000 * 0.06 * len("Nothing of this is kept by the service."))
    page.locator(".dock").get_by_role("button", name="Play").or_(
        page.locator(".dock").get_by_role("button", name="Pause")
    ).first.wait_for()
