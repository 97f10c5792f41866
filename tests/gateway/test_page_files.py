"""The page's files, the headers that they come with, and the cookie that its visitors log in with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from glmtts.gateway import app, page
from glmtts.gateway.settings import Settings
from glmtts.protocol import api_keys
from glmtts.protocol.api_keys import ApiKey

SITE = "http://speech.local"


@pytest.fixture
def key() -> str:
    return api_keys.new_key()


@pytest.fixture
def browser(tmp_path: Path, key: str) -> Iterator[TestClient]:
    file = tmp_path / "keys.toml"
    file.write_text(api_keys.entry(ApiKey(name="anna", sha256=api_keys.digest(key))))
    built = app.build(Settings(api_keys=str(file), trusted_proxies=["10.0.0.0/8"]))
    with TestClient(built, base_url=SITE, client=("10.0.0.1", 1)) as client:
        yield client


def test_the_page_names_all_of_its_files_and_browsers_keep_them(browser: TestClient) -> None:
    index = browser.get("/")
    assert (
        index.headers["cache-control"] == "no-cache"
        and "default-src 'self'" in index.headers["content-security-policy"]
    )
    assert browser.get("/", headers={"if-none-match": index.headers["etag"]}).status_code == 304
    named = set(re.findall(r'"(page/[^"]+)"', index.text))
    modules = {path for path in page._FILES if path.endswith(".js")}
    assert {path.split("/", 2)[2] for path in named} == modules | {"style.css", "parts.css", "icon.svg"}
    for path in named:
        plain = browser.get(f"/{path}", headers={"accept-encoding": "identity"})
        assert plain.status_code == 200 and "immutable" in plain.headers["cache-control"]
        compressed = browser.get(f"/{path}", headers={"accept-encoding": "gzip"})
        assert compressed.headers["content-encoding"] == "gzip" and compressed.content == plain.content


def test_a_page_of_another_version_gets_the_files_of_this_one_and_does_not_keep_them(browser: TestClient) -> None:
    answer = browser.get("/page/0123456789abcdef/vendor/preact.js")
    assert answer.status_code == 200 and answer.headers["cache-control"] == "no-cache"
    for path in ("/page/..%2fapp.py", "/page/x/..%2f..%2fapp.py", "/page/x/x/app.js", "/page/index.js"):
        assert browser.get(path).status_code == 404


def cookie_of(answer: object) -> str:
    return str(answer.headers["set-cookie"])  # type: ignore[attr-defined]  # an answer of httpx


def speak(browser: TestClient, headers: dict[str, str]) -> int:
    """The status for a body that is wrong, which is looked at last."""
    return browser.post("/v1/audio/speech", content=b"{", headers=headers).status_code


@pytest.mark.parametrize(("scheme", "secure"), [("http", False), ("https", True)])
def test_a_key_becomes_a_cookie_that_no_script_and_no_other_site_has(
    browser: TestClient, key: str, scheme: str, secure: bool
) -> None:
    headers = {"origin": SITE.replace("http", scheme), "x-forwarded-proto": scheme}
    answer = browser.post("/session", json={"key": f" {key} "}, headers=headers)
    assert answer.status_code == 204
    (cookie,) = SimpleCookie(cookie_of(answer)).values()
    assert cookie["httponly"] and cookie["samesite"].lower() == "strict" and bool(cookie["secure"]) == secure
    kept = {"cookie": f"{cookie.key}={cookie.value}"}
    assert speak(browser, headers | kept) == 400
    # For a page of another site, or without a name of a site, it does nothing.
    assert speak(browser, kept | {"origin": "http://evil.example"}) == 403
    assert speak(browser, kept) == 403
    answer = browser.delete("/session", headers=kept | headers)
    assert answer.status_code == 204 and "Max-Age=0" in cookie_of(answer)


def test_a_wrong_key_and_another_site_s_page_log_in_no_browser(browser: TestClient, key: str) -> None:
    assert browser.post("/session", json={"key": "glm-wrong"}, headers={"origin": SITE}).status_code == 401
    answer = browser.post("/session", json={"key": key}, headers={"origin": "http://evil.example"})
    assert answer.status_code == 403 and "set-cookie" not in answer.headers
    assert browser.delete("/session", headers={"origin": "http://evil.example"}).status_code == 403
    assert browser.post("/session", content=b"x" * 5_000, headers={"origin": SITE}).status_code == 413
