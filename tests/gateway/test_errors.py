"""The daemon's errors as HTTP answers."""

from __future__ import annotations

import pytest

from glmtts.client import Forbidden, GlmttsError
from glmtts.gateway import errors


def test_a_gateway_that_the_daemon_does_not_know_is_the_operator_s_fault_and_not_the_customer_s(
    caplog: pytest.LogCaptureFixture,
) -> None:
    refused = Forbidden("on_behalf_of: user www-data is not one of [limits] gateways")
    found = errors.of_daemon(refused)
    assert (found.status, found.code) == (503, "unavailable") and "www-data" not in found.message
    assert "www-data is not one of [limits] gateways: add it" in caplog.text
    assert errors.of_daemon(Forbidden("priority: not for you")).status == 403


def test_a_connection_that_the_operator_has_to_put_right_is_not_explained_to_customers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = errors.of_daemon(GlmttsError("tcp://gpu1:5555: connections are encrypted, and this client has no keys"))
    assert (found.status, found.retryable) == (503, True) and "gpu1" not in found.message
    errors.of_daemon(GlmttsError("tcp://gpu1:5555: connections are encrypted, and this client has no keys"))
    assert caplog.text.count("gpu1:5555") == 1
