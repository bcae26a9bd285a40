"""Which error of semantik-realtime an error of nats-py or JetStream is."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import ssl

import nats.errors
import pytest
from semantik_realtime.errors import BackendError, BackendRefused, BackendUnavailable

import semantik_realtime_nats
from semantik_realtime_nats.errors import (
    NO_CLUSTER,
    JetStreamError,
    NoReply,
    SequenceConflict,
    check_reply,
    check_version,
    explain,
    explain_reset,
)

MODULES = [
    f"semantik_realtime_nats.{module.name}"
    for module in pkgutil.iter_modules(semantik_realtime_nats.__path__)
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_are_right(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("version", ["2.11.0", "2.15.1", "3.0.0-preview.1", "a build of our own"])
def test_a_new_enough_or_unknown_version_is_accepted(version: str) -> None:
    assert check_version(version) is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (JetStreamError(10077, 503, "maximum bytes exceeded"), BackendUnavailable),
        (JetStreamError(NO_CLUSTER, 500, "replicas > 1 not supported"), BackendRefused),
        (JetStreamError(10052, 400, "invalid configuration"), BackendRefused),
        (nats.errors.NoRespondersError(), BackendUnavailable),
        (nats.errors.AuthorizationError(), BackendRefused),
        (TimeoutError(), BackendUnavailable),
        (ConnectionRefusedError(), BackendUnavailable),
        (ssl.SSLError(1, "handshake failed"), BackendUnavailable),
        (NoReply("connection lost"), NoReply),
    ],
)
def test_only_what_a_retry_cannot_change_is_refused(
    error: Exception, expected: type[BackendError]
) -> None:
    assert type(explain(error)) is expected


def test_a_certificate_alert_names_the_settings_of_the_certificate() -> None:
    error = ssl.SSLError(1, "alert")
    error.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    assert isinstance(explain(error), BackendRefused)
    assert "SEMANTIK_REALTIME_NATS_TLS_CERT" in str(explain(error))


@pytest.mark.parametrize(
    ("server_info", "expected"),
    [
        ({"tls_verify": True, "auth_required": True}, "SEMANTIK_REALTIME_NATS_TLS_CERT"),
        ({"auth_required": True}, "credentials"),
        ({}, "ConnectionResetError"),
    ],
)
def test_a_reset_handshake_is_explained_by_what_the_server_requires(
    server_info: dict[str, bool], expected: str
) -> None:
    assert expected in str(explain_reset(ConnectionResetError(), server_info))


def test_a_reply_with_an_error_raises_by_its_code() -> None:
    check_reply({"seq": 1})
    for code, expected in ((10071, SequenceConflict), (10039, BackendRefused)):
        with pytest.raises(expected, match="text"):
            check_reply({"error": {"err_code": code, "code": 400, "description": "text"}})
    with pytest.raises(JetStreamError) as caught:
        check_reply({"error": {"err_code": 10077, "code": 503, "description": "text"}})
    assert caught.value.is_temporary
