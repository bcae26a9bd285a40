"""What an error of the server means: whose fault it is, and what helps.

redis-py has a class for some errors and strips their first word; scripts and
older servers put that word in the middle of a text. `code_of` finds it in all
of these, `kind_of` says what to do, and `explain` makes the error of this
package, in a sentence that an operator understands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum

from redis import exceptions

from semantik_realtime.errors import (
    BackendError,
    BackendRefused,
    BackendUnavailable,
    TopicRefused,
)
from semantik_realtime.urls import mask_text


class KeyRefused(TopicRefused):
    """The server refuses a key that belongs to no topic, and answers for others."""

    def __init__(self, key: str, reason: str) -> None:
        BackendRefused.__init__(self, f"the key {key} is refused: {reason}")
        self.topic = key


class Kind(Enum):
    """What to do after an error."""

    NO_ANSWER = "no answer"
    """The connection failed. It has to be closed."""
    WRONG_SERVER = "wrong server"
    """This server is not, or no longer, the one for the call. Close the connection: the next one
    resolves the address again, which may lead to another server by then."""
    WRONG_NODE = "wrong node"
    """The keys of the call are on another node of a cluster. As above; and if a new connection is
    refused too, that is so for this topic alone."""
    TEMPORARY = "temporary"
    """This server cannot do it now. The connection is good."""
    RIGHTS = "rights"
    """An operator has to grant a right, or correct the credentials."""
    SCRIPT_UNKNOWN = "script unknown"
    """Load the scripts again."""
    CALL = "call"
    """The keys or the arguments of this call; others may succeed."""


_KINDS = {
    "READONLY": Kind.WRONG_SERVER,
    "LOADING": Kind.WRONG_SERVER,
    "MASTERDOWN": Kind.WRONG_SERVER,
    "CLUSTERDOWN": Kind.WRONG_SERVER,
    "NOREPLICAS": Kind.WRONG_SERVER,
    "UNBLOCKED": Kind.WRONG_SERVER,
    "REDIRECT": Kind.WRONG_SERVER,
    "MOVED": Kind.WRONG_NODE,
    "ASK": Kind.WRONG_NODE,
    "OOM": Kind.TEMPORARY,
    "BUSY": Kind.TEMPORARY,
    "MISCONF": Kind.TEMPORARY,
    "TRYAGAIN": Kind.TEMPORARY,
    "CLOSED": Kind.TEMPORARY,
    "NOAUTH": Kind.RIGHTS,
    "NOPERM": Kind.RIGHTS,
    "WRONGPASS": Kind.RIGHTS,
    "NOSCRIPT": Kind.SCRIPT_UNKNOWN,
}

# Of the classes that redis-py makes of a code; the derived ones before their bases.
_CLASSES = (
    (exceptions.ReadOnlyError, "READONLY"),
    (exceptions.BusyLoadingError, "LOADING"),
    (exceptions.MasterDownError, "MASTERDOWN"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
    (exceptions.MovedError, "MOVED"),
    (exceptions.AskError, "ASK"),
    (exceptions.OutOfMemoryError, "OOM"),
    (exceptions.TryAgainError, "TRYAGAIN"),
    (exceptions.NoPermissionError, "NOPERM"),
    (exceptions.AuthenticationError, "WRONGPASS"),
    (exceptions.AuthorizationError, "NOPERM"),
    (exceptions.NoScriptError, "NOSCRIPT"),
    (exceptions.ClusterCrossSlotError, "CROSSSLOT"),
)
_FIRST_WORD = re.compile(r"-?([A-Z]{2,})(?= |$)")
_IN_SCRIPT = re.compile(r"script.*?[ :]-?(" + "|".join(_KINDS) + r"|WRONGTYPE)\b", re.DOTALL)
"""A server before Redis 7 reports what a command of a script was refused with as an ERR."""
_FORBIDDEN = re.compile(r"(can't|cannot) (run|access|publish)|no permission", re.IGNORECASE)
"""And so does any server for a right that a command of a script lacks."""

_SENTENCES: Mapping[str, str] = {
    "READONLY": "it is a replica, or was made one, and accepts no writes",
    "LOADING": "it has just started and is loading its data",
    "MASTERDOWN": "it is a replica that has lost its master, and may not answer with old data",
    "CLUSTERDOWN": "its cluster is down",
    "NOREPLICAS": "it has too few replicas to accept a write (min-replicas-to-write)",
    "OOM": "its memory is full (maxmemory)",
    "BUSY": "a script runs on it and blocks it",
    "MISCONF": "it cannot save to its disk",
    "TRYAGAIN": "its cluster is moving these keys to another node",
    "CLOSED": "it is closed",
}


_ADVICE = (
    (
        "certificate is not valid for",
        "its certificate has to name the host as the URL, the sentinels or the cluster do; see "
        "ssl_check_hostname in docs/deployment.md",
    ),
    (
        "certificate verify failed",
        "set ssl_ca_certs in the URL to the file of the authority that signed its certificate",
    ),
)
"""What to do about a part of the text of a failed connection."""


def code_of(error: BaseException) -> str:
    """Return the word by which a server names the kind of an error; "" if it is not from a server.

    >>> code_of(exceptions.ResponseError("WRONGTYPE Operation against a key"))
    'WRONGTYPE'
    >>> code_of(exceptions.ResponseError("ERR Error running script: @user_script: 1: -READONLY x"))
    'READONLY'
    """
    for kind, code in _CLASSES:
        if isinstance(error, kind):
            return code
    if not isinstance(error, exceptions.ResponseError):
        return ""
    text = str(error)
    first = _FIRST_WORD.match(text)
    code = first[1] if first else "ERR"
    if code != "ERR":
        return code
    if _FORBIDDEN.search(text):
        return "NOPERM"
    inside = _IN_SCRIPT.search(text)
    return inside[1] if inside else "ERR"


def kind_of(error: BaseException) -> Kind:
    """Return what to do after ``error``."""
    code = code_of(error)
    return _KINDS.get(code, Kind.CALL) if code else Kind.NO_ANSWER


def ends_connection(error: BaseException) -> bool:
    """Return True if the next call has to resolve the server's address again."""
    return kind_of(error) in (Kind.NO_ANSWER, Kind.WRONG_SERVER, Kind.WRONG_NODE)


def redirection_of(error: BaseException) -> tuple[int, str, int] | None:
    """Return the slot, host and port that a node of a cluster names; None: it names none.

    Before its release 6, redis-py has no class for these errors outside its client for clusters.

    >>> redirection_of(exceptions.ResponseError("ASK 7 10.0.0.2:6379"))
    (7, '10.0.0.2', 6379)
    """
    if code_of(error) not in ("MOVED", "ASK"):
        return None
    *_, slot, place = str(error).split(" ")
    host, _, port = place.rpartition(":")
    return int(slot), host, int(port)


def describe(error: BaseException) -> str:
    """Return what the server means, as the end of a sentence, with its own words.

    >>> describe(exceptions.MovedError("15176 10.0.0.2:6379"))
    'it is one node of a cluster, and slot 15176 of these keys is on another one, 10.0.0.2:6379 \
(MOVED)'
    """
    code, text = code_of(error), mask_text(str(error))
    if (redirection := redirection_of(error)) is not None:
        slot, host, port = redirection
        return (
            f"it is one node of a cluster, and slot {slot} of these keys is on another one, "
            f"{host}:{port} ({code})"
        )
    sentence = _SENTENCES.get(code)
    if sentence is None:
        return text or code
    shown = text if text.startswith(code) else f"{code} {text}".strip()
    return f"{sentence} ({shown})"


def explain(error: BaseException) -> BackendError:
    """Return the error of this package for an error of redis-py or of the server."""
    kind = kind_of(error)
    if kind is Kind.NO_ANSWER:
        return BackendUnavailable(
            f"{type(error).__name__}: {mask_text(str(error))}{_advice_for(error)}"
        )
    if kind is Kind.RIGHTS:
        return BackendRefused(f"the server refuses our rights: {describe(error)}")
    if kind is Kind.WRONG_SERVER or kind is Kind.TEMPORARY:
        verb = "answer" if code_of(error) in ("LOADING", "MASTERDOWN", "CLUSTERDOWN") else "write"
        return BackendUnavailable(f"the server cannot {verb} now: {describe(error)}")
    if kind is Kind.SCRIPT_UNKNOWN:
        return BackendUnavailable("the server does not know a script that was just loaded")
    return BackendRefused(f"the server refuses: {describe(error)}")


def _advice_for(error: BaseException) -> str:
    """Return what an operator can do about a failed connection, after the error's text."""
    text = str(error)
    return next((f" ({advice})" for part, advice in _ADVICE if part in text), "")


def is_about_keys(error: BaseException) -> bool:
    """Return True if the server surely refuses the keys or the arguments of this call alone.

    Not for an error that it does not explain: a proxy has words of its own for an outage.
    """
    kind = kind_of(error)
    if kind is not Kind.CALL:
        return kind is Kind.WRONG_NODE
    return code_of(error) in ("WRONGTYPE", "CROSSSLOT") or "user_script" in str(error)


def explain_for_key(key: str, error: BaseException) -> BackendError:
    """Return the same for a call about one key: `KeyRefused` if the fault is that key's alone."""
    is_its_own = kind_of(error) is Kind.CALL and is_about_keys(error)
    return KeyRefused(key, describe(error)) if is_its_own else explain(error)


def explain_for(topic: str, error: BaseException) -> BackendError:
    """Return the same for a call about one topic: `TopicRefused` if the fault is that topic's."""
    return TopicRefused(topic, describe(error)) if is_about_keys(error) else explain(error)
