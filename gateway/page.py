"""The web page at ``/``: files of the package, with the headers that keep it from being abused."""

from __future__ import annotations

import gzip
import hashlib
from importlib import resources
from importlib.resources.abc import Traversable

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from .errors import HttpError

_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
#: Of every file of the page.
HEADERS = {
    # No script and no style but the page's own files; audio also from what the page has fetched.
    "Content-Security-Policy": "default-src 'self'; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    # Asked for again each time, and answered by 304: an upgrade never mixes files of two versions.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}


class _File(Struct, frozen=True):
    content: bytes
    compressed: bytes
    media_type: str
    etag: str


def _read(folder: Traversable, prefix: str = "") -> dict[str, _File]:
    found: dict[str, _File] = {}
    for item in folder.iterdir():
        if item.is_dir():
            found |= _read(item, f"{prefix}{item.name}/")
        elif media_type := _MEDIA_TYPES.get("." + item.name.rpartition(".")[2]):
            content = item.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[prefix + item.name] = _File(content, gzip.compress(content, mtime=0), media_type, etag)
    return found


#: By their path below ``/page/``. A name is looked up here, and never a path on the disk.
_FILES = _read(resources.files(__package__) / "page")


async def page(request: Request) -> Response:
    """A file of the page; the page itself at ``/``."""
    file = _FILES.get(request.path_params.get("path", "index.html"))
    if file is None:
        raise HttpError(404, "the page has no such file", code="not_found")
    headers = {**HEADERS, "ETag": file.etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.compressed, media_type=file.media_type, headers={**headers, "Content-Encoding": "gzip"})
    return Response(file.content, media_type=file.media_type, headers=headers)
