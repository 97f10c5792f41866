"""The port of `glmttsctl serve`."""

from __future__ import annotations

import pytest

from glmtts.client.cli.failures import Failure
from glmtts.client.cli.serve import _listen


def test_two_at_once_have_a_port_each_and_a_taken_one_is_named() -> None:
    with _listen(None) as first, _listen(None) as second:
        port = first.getsockname()[1]
        assert second.getsockname()[1] != port
        with pytest.raises(Failure, match=f"Port {port} is taken by another program"):
            _listen(port)
