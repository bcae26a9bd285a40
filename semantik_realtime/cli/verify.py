"""``semantik-realtime verify``: publish, watch, break connections, and judge what arrived."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import random
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import jwt
import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from semantik_realtime.cli.event_stream import watch_stream
from semantik_realtime.cli.signals import stopping_as_by_ctrl_c
from semantik_realtime.cli.terminal import make_console, plain, visible
from semantik_realtime.cli.verification import STEP, Finding, Record, Run, delays, judge
from semantik_realtime.cli.watch import WEBSOCKET_PATH, websocket_url
from semantik_realtime.client import Update, watch
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.core.topic import job_topic
from semantik_realtime.errors import AccessError, ConfigError, InvalidInput, RealtimeError
from semantik_realtime.runtime import Runtime
from semantik_realtime.testing.tcp_proxy import TcpProxy
from semantik_realtime.urls import mask_urls

TOKEN_SECONDS = 600.0
"""Of a token that the run makes; a run must be shorter."""
JOIN_SECONDS = 20.0
"""For the first answer to every watcher."""
END_SECONDS = 60.0
"""For the end to reach every watcher."""
DELETE_SECONDS = 1.5
CLOSE_SECONDS = 0.5
"""For what a run that fails, or is interrupted, still has to send."""
REFUSE_SECONDS = 20.0
"""A server waits 5 s before it refuses a job that it does not know."""
STALL_SECONDS = (0.5, 2.0)
MARKS = {True: ("ok", "green"), False: ("FAIL", "red"), None: ("-", "dim")}

Updates = AsyncGenerator[Update]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The command's options."""

    url: str
    token: str | None
    seconds: float
    rate: float
    watchers: int
    seed: int | None
    job: str | None
    as_json: bool


@stopping_as_by_ctrl_c()
def run_verify(options: Options) -> int:
    """Run it; return the exit code: 1 if a guarantee was broken.

    Raises:
        RealtimeError: the run could not be made.
    """
    runtime = Runtime()
    if runtime.settings.backend == "memory":
        raise ConfigError(
            "verify publishes as a worker does, so it needs the web server's backend: set "
            "SEMANTIK_REALTIME_BACKEND and SEMANTIK_REALTIME_URL as for the web server"
        )
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    user, token = _credential(runtime.settings, options.token)
    verification = Verification(runtime, options, user, token, random.Random(seed))  # noqa: S311
    console = make_console()
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=options.as_json,
    ) as progress:
        bar = progress.add_task("publishing", total=verification.last)

        def show(number: int) -> None:
            text = f"publishing, {verification.faults} faults so far"
            progress.update(bar, completed=number, description=text)

        try:
            run = asyncio.run(verification.run(show))
        except BaseException:
            # It has waited for the backend already.
            runtime.close(CLOSE_SECONDS)
            raise
    runtime.close()
    findings = judge(run)
    if options.as_json:
        figures = {"seed": seed, "events": run.last, "delays": delays(run.records)}
        print(json.dumps({**figures, "findings": msgspec.to_builtins(findings)}))
    else:
        address = mask_urls(options.url)
        title = f"{run.last:,} events through {address}, {len(run.records)} watchers, seed {seed}"
        console.print(plain(title, "bold"))
        console.print(_table([*findings, Finding("delay", None, delays(run.records))]))
    return int(any(finding.is_right is False for finding in findings))


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        mark = Text(*MARKS[finding.is_right])
        table.add_row(mark, plain(finding.subject), plain(finding.text))
    return table


def _credential(settings: Settings, token: str | None) -> tuple[str, str]:
    """Return a user and a token for them: the given one, or a short one that the settings sign.

    Raises:
        ConfigError: no token was given, and the settings have no secret to sign one.
    """
    if token is not None:
        try:
            claims = jwt.decode(token, options={"verify_signature": False})
        except jwt.InvalidTokenError as error:
            raise InvalidInput(f"--token is not a JWT: {error}") from None
        claim = settings.jwt_user_claim
        user = claims.get(claim)
        if user is None:
            raise InvalidInput(f"--token has no {claim!r} (SEMANTIK_REALTIME_JWT_USER_CLAIM)")
        return str(user), token
    if settings.jwt_secret is None:
        raise ConfigError(
            "no credential: give --token or SEMANTIK_REALTIME_TOKEN, or set "
            "SEMANTIK_REALTIME_JWT_SECRET as for the web server"
        )
    user = f"verify-{secrets.token_hex(4)}"
    given = {"aud": settings.jwt_audience, "iss": settings.jwt_issuer}
    claims = {
        settings.jwt_user_claim: user,
        "exp": time.time() + TOKEN_SECONDS,
        **{name: value for name, value in given.items() if value is not None},
    }
    secret = settings.jwt_secret.get_secret_value()
    return user, jwt.encode(claims, secret, settings.jwt_algorithms[0])


class Verification:
    """One run: its job, watchers and proxies.

    Args:
        runtime: Publishes.
        user: Owner of the job; ``token`` is theirs.
        chance: Decides which connection breaks when.
    """

    def __init__(
        self, runtime: Runtime, options: Options, user: str, token: str, chance: random.Random
    ) -> None:
        self._runtime = runtime
        self._user, self._token = user, token
        self._chance = chance
        self._job = options.job or f"verify-{secrets.token_hex(6)}"
        self._topic = job_topic(self._job)
        self._websocket = websocket_url(options.url)
        place = urlsplit(self._websocket)
        if place.scheme not in ("ws", "wss") or place.hostname is None:
            raise InvalidInput(f"{mask_urls(options.url)}: expected http://host:port/prefix")
        scheme = {"ws": "http", "wss": "https"}[place.scheme]
        prefix = place.path.removesuffix(WEBSOCKET_PATH.removeprefix("/realtime"))
        self._http = f"{scheme}://{place.netloc}{prefix}"
        self._server = (place.hostname, place.port or {"ws": 80, "wss": 443}[place.scheme])
        self.last = max(2, round(options.seconds * options.rate))
        """How many numbered events are published."""
        self._pause = 1 / options.rate
        self._watchers = options.watchers
        self.faults = 0
        """How many connections were broken so far."""
        # When each number was published, and with 0 the end; monotonic seconds.
        self._published_at: dict[int, float] = {}

    async def run(self, show: Callable[[int], None]) -> Run:
        """Publish, watch, break, and return what was observed.

        Raises:
            InvalidInput: the job exists already, or the server cannot be watched.
            AccessError: the server does not let the user watch the job.
            BackendError: the backend did not answer at the start.
        """
        await self._refuse_existing()
        receipt = await self._runtime.publish(self._topic, "job_queued", owner=self._user)
        if receipt.outcome is not Outcome.APPENDED:
            raise InvalidInput(f"{self._topic}: the first event is {receipt.outcome.value}")
        try:
            return await self._observe(show)
        except* AccessError as refused:
            raise AccessError(
                f"{self._http} does not show user {self._user} a job of theirs: "
                f"{refused.exceptions[0]}. Does it use the same backend as this command, "
                f"{mask_urls(self._runtime.settings.url or '')}, and the same secret? If its "
                "authorize hook accepts only certain jobs, name one with --job"
            ) from None
        except* RealtimeError as failed:
            raise failed.exceptions[0] from None
        finally:
            await self._delete(self._job, self._user)

    async def _delete(self, job: str, owner: str) -> None:
        """Delete a job that this run has made, unless the backend hangs: then it expires."""
        try:
            async with asyncio.timeout(DELETE_SECONDS):
                await self._runtime.delete(job, owner=owner)
        except TimeoutError:
            # The threads of its calls would hold up the end of the loop.
            self._runtime.backend.close_writer()

    async def _refuse_existing(self) -> None:
        """Raise InvalidInput if the backend knows the job, which would be deleted at the end."""
        backend = self._runtime.backend
        await backend.open()
        try:
            known = (await backend.tops([self._topic])).get(self._topic)
        finally:
            await backend.close()
        if known is not None:
            raise InvalidInput(f"{self._topic} exists already: name a job that does not")

    async def _observe(self, show: Callable[[int], None]) -> Run:
        records = [Record("untouched")]
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            proxies = {}
            following = []
            names = [f"socket {number}" for number in range(1, self._watchers + 1)] + ["stream"]
            for name in ["untouched", *names]:
                port, host = self._server[1], self._server[0]
                proxy = await stack.enter_async_context(TcpProxy(port, host))
                if name != "untouched":
                    records.append(Record(name))
                    proxies[name] = proxy
                updates = self._updates(name, ("127.0.0.1", proxy.port))
                following.append(tasks.create_task(self._follow(records[-1], updates)))
            await self._wait_for_snapshots(records)
            breaking = tasks.create_task(self._break(proxies, records))
            offsets, acknowledged = await self._publish(show)
            breaking.cancel()
            _, late = await asyncio.wait(following, timeout=END_SECONDS)
            for task in late:
                task.cancel()
            foreign, anonymous = await asyncio.gather(self._ask_foreign(), self._ask_anonymous())
            rest = await asyncio.to_thread(self._get_state)
        return Run(offsets, self.last, records, acknowledged, foreign, anonymous, rest)

    def _updates(self, name: str, address: tuple[str, int]) -> Updates:
        if name == "stream":
            url = f"{self._http}/events"
            return watch_stream(url, self._topic, token=self._token, connect_to=address)
        return watch(self._websocket, self._topic, token=self._token, connect_to=address)

    async def _wait_for_snapshots(self, records: Sequence[Record]) -> None:
        deadline = time.monotonic() + JOIN_SECONDS
        while waiting := [record.name for record in records if record.first_offset is None]:
            if time.monotonic() > deadline:
                raise InvalidInput(
                    f"{self._http} did not answer {', '.join(waiting)} within {JOIN_SECONDS:.0f} s"
                )
            await asyncio.sleep(0.02)

    async def _follow(self, record: Record, updates: Updates) -> None:
        async with contextlib.aclosing(updates):
            async for update in updates:
                if update.connection == "reconnecting" and record.first_offset is None:
                    raise InvalidInput(f"{self._http} cannot be watched: {update.reason}")
                if update.connection == "degraded" and not update.events:
                    record.degraded += 1
                elif update.connection == "live" and update.replayed:
                    record.sync(update.view.offset, update.view.reason)
                elif update.connection == "live":
                    if record.first_offset is None:
                        record.sync(update.view.offset, update.view.reason)
                    if update.gap is not None:
                        record.gap(update.view.offset, update.gap.reason)
                    for event in update.events:
                        number = event.get("data", {}).get("n", 0)
                        sent = self._published_at.get(number, time.monotonic())
                        record.event(event, time.monotonic() - sent)
                state = update.view.folded.get(self._job, {})
                if state.get("status") == "completed" and record.end_delay is None:
                    record.end_delay = time.monotonic() - self._published_at[0]
                    record.state = dict(state)
                    return

    async def _publish(self, show: Callable[[int], None]) -> tuple[dict[int, int], list[float]]:
        offsets: dict[int, int] = {}
        acknowledged: list[float] = []
        began = time.monotonic()
        for number in range(1, self.last + 1):
            await asyncio.sleep(max(0.0, began + number * self._pause - time.monotonic()))
            self._published_at[number] = time.monotonic()
            receipt = await self._runtime.publish(
                self._topic, STEP, data={"n": number}, state=self._state("running", number)
            )
            acknowledged.append(time.monotonic() - self._published_at[number])
            if receipt.cursor is not None:
                offsets[number] = receipt.cursor.offset
            show(number)
        self._published_at[0] = time.monotonic()
        await self._runtime.publish(
            self._topic, "job_completed", state=self._state("completed", self.last)
        )
        return offsets, acknowledged

    def _state(self, status: str, number: int) -> dict[str, Any]:
        return {"status": status, "progress": {"current": number, "total": self.last}}

    async def _break(self, proxies: dict[str, TcpProxy], records: Sequence[Record]) -> None:
        """Break one connection after the other, until cancelled."""
        by_name = {record.name: record for record in records}
        while True:
            await asyncio.sleep(self._chance.uniform(0.2, 1.0))
            name = self._chance.choice(sorted(proxies))
            proxy = proxies[name]
            match self._chance.choice(["cut", "lose a response", "stall", "refuse"]):
                case "cut":
                    proxy.cut()
                case "lose a response":
                    with proxy.losing_responses():
                        await asyncio.sleep(0.2)
                case "stall":
                    with proxy.stalled():
                        await asyncio.sleep(self._chance.uniform(*STALL_SECONDS))
                case _:
                    with proxy.refusing():
                        await asyncio.sleep(0.5)
            by_name[name].faults += 1
            self.faults += 1

    async def _ask_foreign(self) -> str | None:
        """Return how the server refuses a job of another user."""
        job = f"{self._job}-foreign"
        await self._runtime.publish(job_topic(job), "job_queued", owner=f"{self._user}-other")
        try:
            return await self._refusal(watch(self._websocket, job_topic(job), token=self._token))
        finally:
            await self._delete(job, f"{self._user}-other")

    async def _ask_anonymous(self) -> str | None:
        return await self._refusal(watch(self._websocket, self._topic))

    async def _refusal(self, updates: Updates) -> str | None:
        """Return how the server refuses; None: it shows the topic. Raises InvalidInput."""
        try:
            async with asyncio.timeout(REFUSE_SECONDS), contextlib.aclosing(updates):
                async for update in updates:
                    if update.view.synced:
                        return None
        except AccessError as error:
            return visible(error)
        except TimeoutError:
            raise InvalidInput(
                f"{self._http} neither shows nor refuses a job within {REFUSE_SECONDS:.0f} s"
            ) from None
        return None

    def _get_state(self) -> dict[str, Any] | None:
        """Return the job's state by REST; None if the server does not show it."""
        place = urlsplit(self._http)
        kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        connection = kind[place.scheme](place.netloc, timeout=REFUSE_SECONDS)
        try:
            path = f"{place.path}/jobs/{quote(self._job, safe='')}"
            connection.request("GET", path, headers={"Authorization": f"Bearer {self._token}"})
            response = connection.getresponse()
            if response.status != http.client.OK:
                return None
            state: dict[str, Any] | None = json.load(response).get("states", {}).get(self._job)
            return state
        except (OSError, ValueError, http.client.HTTPException):
            return None
        finally:
            connection.close()
