"""This project: `Realtime` in FastAPI, and a job that publishes through the emitter."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from benchmarks.broker import settings_for
from benchmarks.contender import OURS
from benchmarks.traffic import begin_job, emit_events
from benchmarks.wires import NativeWire
from semantik_realtime.core import frames
from semantik_realtime.core.event import Cursor
from semantik_realtime.hookspecs import Credentials
from semantik_realtime.runtime import Runtime
from semantik_realtime.web.endpoints import websocket
from semantik_realtime.web.realtime import Realtime
from semantik_realtime.web.wires import native
from semantik_realtime.web.wires.wire import Outgoing

FLUSH_SECONDS = 30.0


@dataclass(frozen=True)
class Ours:
    """Default settings, except that each socket is another user's, who may watch everything.

    So each has a place of its own in a lease, as the users of an application have.
    """

    broker: str
    one_frame_per_event: bool = False
    """The yardstick of `benchmarks.fanout`."""

    name = OURS
    wire = NativeWire()

    def application(self, url: str | None) -> Any:
        if self.one_frame_per_event:
            module: Any = websocket
            module.NativeWire = OneFramePerEvent
        app = FastAPI()
        app.state.realtime = realtime = Realtime(settings_for(self.broker, url))
        app.include_router(realtime.router(authenticate=_new_user, authorize=_allow))
        return app

    def publisher(self, url: str, job_ids: Sequence[str]) -> JobPublisher:
        return JobPublisher(Runtime(settings_for(self.broker, url)), job_ids)

    def local_publisher(self, application: Any, job_ids: Sequence[str]) -> JobPublisher:
        return JobPublisher(application.state.realtime, job_ids)


async def _new_user(credentials: Credentials) -> str:
    return secrets.token_hex(6)


async def _allow(user: str, topic: str, owner: str | None) -> bool:
    return True


class JobPublisher:
    """Publishes by jobs that emit the events in turn."""

    def __init__(self, runtime: Runtime, job_ids: Sequence[str]) -> None:
        self._runtime = runtime
        self._jobs = [begin_job(runtime, job_id) for job_id in job_ids]
        self.flush()

    def publish(self, numbers: Sequence[int]) -> None:
        emit_events(self._jobs, numbers)

    def flush(self) -> None:
        self._runtime.emitter.flush(FLUSH_SECONDS)

    def close(self) -> None:
        self._runtime.close()


class OneFramePerEvent(native.NativeWire):
    """The same wire, but each event is encoded and sent in its own frame."""

    def events(self, waiting: list[tuple[str, Outgoing]]) -> list[str]:
        return [
            frames.events_frame(
                [
                    frames.topic_events(
                        topic,
                        event.offset - 1,
                        Cursor(outgoing.cursor.epoch, event.offset, event.chain),
                        [event],
                    )
                ]
            )
            for topic, outgoing in waiting
            for event in outgoing.events
        ]
