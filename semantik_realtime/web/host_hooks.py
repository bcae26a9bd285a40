"""Ask the host's plugins, one after the other, and translate what they raise."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import jwt
import pluggy
from starlette.exceptions import HTTPException, WebSocketException

from semantik_realtime.errors import AccessError, BackendUnavailable
from semantik_realtime.hookspecs import NO_OPINION, Credentials
from semantik_realtime.urls import mask_text

HOST_SECONDS = 5.0
"""Deadline of all plugins together, for one question."""
MAX_REASON = 500
"""Characters of an error's text that are logged."""
_SECRET_HEADERS = ("authorization", "cookie", "sec-websocket-protocol")
_POLICY_VIOLATION = 1008
_CODES = frozenset({"forbidden", "unauthenticated", "expired"})
_PASSING = frozenset({408, 429})
"""Statuses from 400 to 499 that refuse only for now."""


async def ask_host(plugins: pluggy.PluginManager, name: str, /, **arguments: Any) -> Any:
    """Return the first answer of a plugin's hook ``name`` that is neither None nor `NO_OPINION`.

    Without one it returns None if a plugin has returned None, else
    `NO_OPINION`. A hook may be a coroutine function.

    Raises:
        AccessError: the host has refused.
        BackendUnavailable: a hook failed otherwise, or all took longer than
            `HOST_SECONDS`. A database that is away must refuse no user for good.
    """
    hooks = getattr(plugins.hook, name).get_hookimpls()
    asked = [hook.plugin for hook in hooks if not (hook.wrapper or hook.hookwrapper)]
    answer: Any = NO_OPINION
    try:
        async with asyncio.timeout(HOST_SECONDS):
            for plugin in reversed(asked):
                # A coroutine counts as an answer for pluggy, so each plugin is called by itself.
                others = [other for other in asked if other is not plugin]
                result = plugins.subset_hook_caller(name, others)(**arguments)
                if inspect.isawaitable(result):
                    result = await result
                if result is None:
                    answer = None
                elif result is not NO_OPINION:
                    return result
    except (Exception, asyncio.CancelledError) as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
            raise
        # A pool of connections that is being closed cancels the tasks that wait for one, though
        # nobody has cancelled this task.
        refusal = refusal_of(error)
        if refusal is not None:
            raise refusal from error
        reason = _hide_secrets(mask_text(repr(error)), arguments.get("credentials"))
        raise BackendUnavailable(f"the host's {name} failed: {reason}") from error
    return answer


def _hide_secrets(text: str, credentials: Credentials | None) -> str:
    """Return the text of an error without what it may quote of a request, for the log."""
    if credentials is not None:
        secrets = [credentials.token, *map(credentials.headers.get, _SECRET_HEADERS)]
        for secret in filter(None, secrets):
            text = text.replace(secret, "***").replace(repr(secret)[1:-1], "***")
    return text[:MAX_REASON]


def refusal_of(error: BaseException) -> AccessError | None:
    """Return the refusal that a host means by ``error``; None: it does not refuse, it fails.

    A login function that the host has already raises what its framework or
    its library for tokens has for the purpose.
    """
    match error:
        case AccessError(code=code):
            return error if code in _CODES else AccessError(str(error))
        case HTTPException(status_code=401, detail=detail):
            return AccessError(str(detail), "unauthenticated")
        case HTTPException(status_code=status, detail=detail) if 400 <= status < 500:
            return None if status in _PASSING else AccessError(str(detail))
        case WebSocketException(code=code, reason=reason) if code == _POLICY_VIOLATION:
            return AccessError(reason or "not accepted", "unauthenticated")
        case jwt.ExpiredSignatureError():
            return AccessError("the token has expired", "expired")
        case jwt.InvalidTokenError():
            return AccessError("the token was not accepted", "unauthenticated")
    return None
