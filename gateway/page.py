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
#: Below their version, files are kept by browsers and never asked for again; an upgrade is another version.
_KEPT = "public, max-age=31536000, immutable"
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
    # Asked for again each time, and answered by 304.
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
        elif (suffix := "." + item.name.rpartition(".")[2]) in _MEDIA_TYPES:
            found[prefix + item.name] = _file(item.read_bytes(), suffix)
    return found


def _file(content: bytes, suffix: str) -> _File:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return _File(content, gzip.compress(content, mtime=0), _MEDIA_TYPES[suffix], etag)


def _whole(files: dict[str, _File]) -> tuple[str, _File]:
    """The version of all files together, and the page itself, which names them below that version.

    It names each module, so that the browser fetches all at once and not one after the other as they import them.
    """
    version = hashlib.sha256("".join(name + files[name].etag for name in sorted(files)).encode()).hexdigest()[:16]
    modules = "".join(
        f'  <link rel="modulepreload" href="page/{name}">\n' for name in sorted(files) if name.endswith(".js")
    )
    text = files["index.html"].content.decode().replace("</head>", f"{modules}</head>")
    return version, _file(text.replace('"page/', f'"page/{version}/').encode(), ".html")


#: By their path below ``/page/``. A name is looked up here, and never a path on the disk.
_FILES = _read(resources.files(__package__) / "page")
_VERSION, _INDEX = _whole(_FILES)


async def page(request: Request) -> Response:
    """A file of the page; the page itself at ``/``."""
    path: str = request.path_params.get("path", "")
    name = path if path in _FILES else path.partition("/")[2]
    file = _FILES.get(name) if path else _INDEX
    if file is None:
        raise HttpError(404, "the page has no such file; reload the page", code="not_found")
    headers = {**HEADERS, "ETag": file.etag}
    # A page of another version, before an upgrade or from another gateway, gets this version's file to use once.
    if path == f"{_VERSION}/{name}":
        headers["Cache-Control"] = _KEPT
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.compressed, media_type=file.media_type, headers={**headers, "Content-Encoding": "gzip"})
    return Response(file.content, media_type=file.media_type, headers=headers)
