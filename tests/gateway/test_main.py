"""`glmtts-gateway` itself: what it says before it serves."""

from __future__ import annotations

import sys

import pytest

from glmtts.gateway.main import main


@pytest.mark.parametrize("package", ["starlette.applications", "uvicorn", "websockets"])
def test_without_its_packages_it_names_them_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str
) -> None:
    for module in [name for name in sys.modules if name.startswith("glmtts.gateway.") and not name.endswith("main")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "uvicorn.protocols.websockets.websockets_sansio_impl", raising=False)
    monkeypatch.delattr("glmtts.gateway.app", raising=False)
    monkeypatch.delattr("glmtts.gateway.server", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    assert main([]) == 78
    (line,) = capsys.readouterr().err.splitlines()
    assert package in line and "pip install prometheus-client python-multipart starlette uvicorn websockets" in line
