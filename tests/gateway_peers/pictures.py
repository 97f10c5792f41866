"""The pictures of the page in docs/pictures: ``python -m tests.gateway_peers.pictures ADDRESS``.

ADDRESS is a service that has spoken nothing yet (``make serve``). Pillow makes the files small.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

_FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
_TEXTS = {
    "en": [
        "Good morning! The next train to the airport leaves from platform two in four minutes.",
        "Today's headlines: rain in the north, sun in the south, and a record harvest of very small apples.",
        "The lighthouse keeper counted the ships each evening, and wrote their names in a book. Tonight there was one "
        "more than yesterday. He lit the lamp, looked twice at the list, and began again from the first.",
    ],
    "zh": [
        "各位旅客请注意，开往机场的下一班列车将于四分钟后从二号站台发车。",
        "今天气温 26 度，北部有小雨，南部晴朗，出门记得带伞哦。",
        "守塔人每天傍晚都会数一数归来的船，把它们的名字写进一本册子里。今晚，比昨天多了一艘。他点亮了灯，"
        "把名单又看了两遍，然后从第一艘重新数起。",
    ],
}
#: Between pictures: a colour that the page does not have, made transparent.
_NOWHERE = "#ff00ff"
_LINES = '{"uttid": "welcome", "syn_text": "Welcome aboard."}\n{"uttid": "exit", "syn_text": "no end\n' + "".join(
    f'{{"uttid": "stop-{number}", "syn_text": "The next stop is {name}."}}\n'
    for number, name in enumerate(("Harbour Street", "Old Market", "University"), 1)
)


def _open(browser: Browser, address: str, language: str, scheme: str, size: tuple[int, int]) -> Page:
    context = browser.new_context(
        locale={"en": "en-US", "zh": "zh-CN"}[language],
        color_scheme=scheme,  # type: ignore[arg-type]  # one of its literals
        viewport={"width": size[0], "height": size[1]},
        device_scale_factor=1.5,
        permissions=["microphone"],
    )
    page = context.new_page()
    page.goto(address)
    page.locator("#text").wait_for()
    return page


def _speak(page: Page, texts: list[str], played: float) -> None:
    """Speak them, and stop where so much of the last is played."""
    for text in texts:
        page.locator("#text").fill(text)
        page.locator(".speak-button").click()
        page.locator("[data-state=done]").wait_for()
        page.locator(".recent .job.done", has_text=text[:20]).wait_for()
    position = page.locator(".waves input")
    page.wait_for_timeout(800)
    page.locator(".dock .play").click()
    position.fill(f"{played * float(position.get_attribute('max') or 0):.2f}")
    page.locator(".speak-button").focus()
    page.locator("#text").focus()
    page.wait_for_timeout(500)


def _save(name: str, *pages: Page) -> None:
    """The pages side by side, in 256 colours."""
    shots = [Image.open(io.BytesIO(page.screenshot())).convert("RGB") for page in pages]
    gap = 24
    width = sum(shot.width + gap for shot in shots) - gap
    whole = Image.new("RGB", (width, shots[0].height), _NOWHERE)
    for number, shot in enumerate(shots):
        whole.paste(shot, (sum(one.width + gap for one in shots[:number]), 0))
    small = whole.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    nowhere = small.getpixel((shots[0].width, 0)) if len(shots) > 1 else None
    _FOLDER.mkdir(exist_ok=True)
    small.save(_FOLDER / f"{name}.png", optimize=True, transparency=nowhere)
    for page in pages:
        page.context.close()


def main(address: str) -> None:
    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=arguments)
        for language, scheme in (("en", "light"), ("zh", "dark")):
            page = _open(browser, address, language, scheme, (1200, 800))
            _speak(page, _TEXTS[language], 0.4)
            _save(f"page-{language}", page)
        small = [_open(browser, address, "en", scheme, (360, 720)) for scheme in ("light", "dark", "light")]
        _speak(small[0], _TEXTS["en"][-1:], 0.6)
        small[1].goto(f"{address}#history")
        small[2].goto(f"{address}#batch")
        small[2].locator(".drop input").set_input_files(
            {"name": "announcements.jsonl", "mimeType": "", "buffer": _LINES.encode()}
        )
        small[2].locator(".batch-head .primary").click()
        small[2].locator(".line.done").nth(3).wait_for()
        for page in small:
            page.wait_for_timeout(500)
        _save("page-small", *small)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
