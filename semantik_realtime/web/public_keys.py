"""The issuer's public keys: fetched from a URL, kept for a while, fetched again when needed."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import Future
from typing import Any

import jwt

from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.urls import mask_text

logger = logging.getLogger(__name__)

FETCH_SECONDS = 5.0
"""Deadline of one fetch."""
PAUSE_SECONDS = 5.0
"""At least so long after the begin of a fetch the next one begins."""
FRESH_SECONDS = 300.0
"""After this time the keys are fetched again."""
KEEP_SECONDS = 3600.0
"""How long they are used while they cannot be fetched again."""


class PublicKeys:
    """The keys of one URL, by their ids. For any loop and thread; makes no connection by itself.

    One fetch runs at a time, in a thread of its own, and all that need it
    wait for that one. Unknown ids cause at most one in `PAUSE_SECONDS`: anyone
    can invent them.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        # Guards what follows.
        self._lock = threading.Lock()
        self._keys: dict[str, Any] = {}
        # When the newest fetch that succeeded, and the newest one at all, began (monotonic).
        self._succeeded_at = -KEEP_SECONDS
        self._began_at = -KEEP_SECONDS
        # The fetch that runs; None: none does.
        self._running: Future[None] | None = None
        # Whether the newest fetch failed: a failure is logged once.
        self._fails = False

    async def find(self, key_id: object) -> Any:
        """Return the key with this id; None: the issuer has none.

        Raises:
            BackendUnavailable: the keys cannot be fetched now.
        """
        asked_at = time.monotonic()
        while True:
            age = time.monotonic() - self._succeeded_at
            key = self._keys.get(key_id) if isinstance(key_id, str) else None
            if key is not None and age < FRESH_SECONDS:
                return key
            if self._succeeded_at >= asked_at:
                # As new as the question.
                return key
            if key is not None and age < KEEP_SECONDS and self._fails:
                # Nobody waits for a server that is away while the old keys will do.
                self._start()
                return key
            try:
                await self._wait_for_fetch()
            except BackendUnavailable:
                if key is None or age >= KEEP_SECONDS:
                    raise
                return key

    async def _wait_for_fetch(self) -> None:
        """Wait for the end of the fetch that runs, or else of the next one.

        Raises:
            BackendUnavailable: it failed, or did not end in time.
        """
        if self._running is None and not self._fails:
            await asyncio.sleep(self._began_at + PAUSE_SECONDS - time.monotonic())
        running = self._start()
        if running is not None:
            try:
                async with asyncio.timeout(FETCH_SECONDS + 1.0):
                    await asyncio.wrap_future(running)
            except TimeoutError:
                self._note_failure(TimeoutError(f"no answer within {FETCH_SECONDS + 1.0:g} s"))
        if self._fails:
            raise BackendUnavailable("no keys to check tokens with")

    def _start(self) -> Future[None] | None:
        """Return the fetch that runs, or a new one; None: it is too early for one."""
        with self._lock:
            if self._running is None and time.monotonic() - self._began_at >= PAUSE_SECONDS:
                self._began_at = time.monotonic()
                self._running = Future()
                # So that a waiter that gives up cannot cancel it for the others.
                self._running.set_running_or_notify_cancel()
                # Not a thread of the application's pool, and none that a stop waits for.
                threading.Thread(
                    target=self._fetch,
                    args=(self._running,),
                    name="semantik-realtime-keys",
                    daemon=True,
                ).start()
            return self._running

    def _fetch(self, running: Future[None]) -> None:
        began_at = self._began_at
        try:
            keys = _load(self._url)
        except Exception as error:
            # A server that answers something else than keys must not end the thread silently.
            self._note_failure(error)
        else:
            with self._lock:
                self._keys = keys
                self._succeeded_at = began_at
                has_failed, self._fails = self._fails, False
            if has_failed:
                logger.info("access: keys fetched again url=%s", mask_text(self._url))
        finally:
            with self._lock:
                self._running = None
            running.set_result(None)

    def _note_failure(self, error: Exception) -> None:
        with self._lock:
            has_failed, self._fails = self._fails, True
        if not has_failed:
            logger.warning(
                "access: keys not fetched url=%s error=%s (logged once until they are)",
                mask_text(self._url),
                mask_text(str(error) or repr(error)),
            )


def _load(url: str) -> dict[str, Any]:
    # Some servers refuse the name that Python's library has by itself.
    client = jwt.PyJWKClient(
        url,
        cache_jwk_set=False,
        timeout=FETCH_SECONDS,  # type: ignore[arg-type, unused-ignore]
        headers={"User-Agent": "semantik-realtime"},
    )
    return {key.key_id: key.key for key in client.get_signing_keys(refresh=True) if key.key_id}
