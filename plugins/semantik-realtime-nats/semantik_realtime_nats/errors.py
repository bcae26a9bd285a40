"""What nats-py and JetStream report, and which error of semantik-realtime it is. Pure."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import Any

import nats.errors
from semantik_realtime.errors import BackendError, BackendRefused, BackendUnavailable
from semantik_realtime.urls import mask_text

OLDEST_VERSION = (2, 11)
"""The first server with expected sequences of another subject, batched direct reads and TTLs."""

# JetStream's error codes (server/errors.json in nats-server).
STREAM_MISSING = 10059
STREAM_EXISTS = 10058
WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
NO_JETSTREAM = frozenset({10039, 10076})
NO_CLUSTER = 10074

NO_CERTIFICATE = (
    "the server requires a certificate from a CA that it trusts; set "
    "SEMANTIK_REALTIME_NATS_TLS_CERT and SEMANTIK_REALTIME_NATS_TLS_KEY"
)
_CERTIFICATE_ALERT = re.compile("ALERT.*(CERTIFICATE|UNKNOWN_CA)")
_REFUSED_PUBLISH = re.compile(r'violation for publish to "([^"]+)"')
_REFUSED_SUBJECT = re.compile(r'violation for subscription to "([^"]+)"')


class SequenceConflict(Exception):
    """A conditional publish came too late: the subject has a newer message. Nothing was stored."""


class NoReply(BackendUnavailable):
    """A request was sent and got no reply. The server may have executed it."""


class JetStreamError(BackendError):
    """JetStream replied with an error. Nothing was stored."""

    def __init__(self, error_code: int, status: int, text: str) -> None:
        super().__init__(text)
        self.error_code = error_code
        """JetStream's own number, such as `STREAM_MISSING`."""
        # A single server that lacks a cluster for replicas reports 500, but never gets one.
        self.is_temporary = status >= 500 and error_code != NO_CLUSTER
        """True if the same request may succeed later."""


def check_version(version: str) -> str | None:
    """Return why a server of this version cannot be used, or None if it can.

    A version that is not of the form ``major.minor…`` (a custom build) is accepted.

    >>> check_version("2.15.1")
    >>> check_version("2.10.26")
    'the server is NATS 2.10.26; 2.11 or newer is needed'
    """
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError:
        return None
    if (major, minor) >= OLDEST_VERSION:
        return None
    return f"the server is NATS {version}; {'.'.join(map(str, OLDEST_VERSION))} or newer is needed"


def check_reply(reply: Mapping[str, Any]) -> None:
    """Check a decoded JSON reply of JetStream.

    Raises:
        SequenceConflict: the condition of a publish did not hold.
        BackendRefused: the account has no JetStream.
        JetStreamError: any other error.
    """
    error = reply.get("error")
    if error is None:
        return
    code = int(error.get("err_code", 0))
    text = str(error.get("description", error))
    if code in WRONG_LAST_SEQUENCE:
        raise SequenceConflict(text)
    if code in NO_JETSTREAM:
        raise BackendRefused(f"there is no JetStream for this account: {text}")
    raise JetStreamError(code, int(error.get("code", 0)), text)


def explain(error: BaseException) -> BackendError:
    """Return the `BackendError` that tells a caller of the backend what to do about ``error``."""
    if isinstance(error, JetStreamError):
        if error.is_temporary:
            return BackendUnavailable(f"JetStream cannot do it now: {error}")
        return BackendRefused(f"JetStream refuses: {error}")
    if isinstance(error, BackendError):
        return error
    if isinstance(error, nats.errors.NoRespondersError):
        return BackendUnavailable("no server responds for the stream")
    if isinstance(error, TimeoutError):
        return BackendUnavailable("no reply in time")
    if isinstance(error, ssl.SSLError):
        # Absent in an error that Python made, not OpenSSL.
        reason = getattr(error, "reason", None) or ""
        if _CERTIFICATE_ALERT.search(reason):
            return BackendRefused(f"{NO_CERTIFICATE} ({reason})")
    text = mask_text(str(error)) or type(error).__name__
    if "authoriz" in text.lower() or "authent" in text.lower():
        return BackendRefused(f"the server refuses our credentials: {text}")
    return BackendUnavailable(f"{type(error).__name__}: {text}")


def explain_reset(error: BaseException, server_info: Mapping[str, Any]) -> BackendError:
    """Return why a server closed the connection during the handshake without a message.

    Args:
        error: the reset that the client saw.
        server_info: the server's INFO, empty if it was not received.
    """
    if server_info.get("tls_verify"):
        return BackendRefused(NO_CERTIFICATE)
    if server_info.get("auth_required"):
        return BackendRefused("the server refuses our credentials: it closes the connection")
    return BackendUnavailable(
        f"the server closes the connection during the handshake ({type(error).__name__}): it may "
        "have reached its max_connections, or conn of the account"
    )


def explain_violation(text: str) -> str:
    """Return what to do about a permissions violation.

    >>> explain_violation('permissions violation for publish to "semantik.held.17"')
    "the server refuses our permissions: the user may not publish to semantik.held.17 (they are in \
the plugin's README)"
    """
    found = _REFUSED_PUBLISH.search(text)
    what = f"the user may not publish to {found[1]}" if found else text
    return f"the server refuses our permissions: {what} (they are in the plugin's README)"


def refused_subscription(text: str) -> str | None:
    """Return the subject that a permissions violation forbids to subscribe to, if it names one.

    >>> refused_subscription('permissions violation for subscription to "semantik.live.job:1"')
    'semantik.live.job:1'
    >>> refused_subscription('permissions violation for publish to "semantik.lease.1"')
    """
    found = _REFUSED_SUBJECT.search(text)
    return found[1] if found else None
