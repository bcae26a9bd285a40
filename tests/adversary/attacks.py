"""The faults, by name: on which engines, and how long recovery may take."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import msgspec
from engine_servers import NAMES, in_thread
from hostile_proxy import HostileProxy
from world import KEPT_EVENTS, World

Run = Callable[[World, random.Random], Awaitable[None]]
SINGLE = ("valkey", "redis", "nats")
REPLICATED = ("valkey", "redis")
NODES = ("sentinel", "cluster", "nats-r3")
QUICK_SECONDS = 45.0
"""For links and single servers: a client may pause for up to 30 s between two tries."""
ELECTION_SECONDS = 75.0
"""For engines that elect: an election takes up to 9 s, and the machine may be busy."""


class Attack(msgspec.Struct, frozen=True):
    run: Run
    engines: tuple[str, ...]
    bound_seconds: float
    about: str


ATTACKS: dict[str, Attack] = {}


def attack(
    engines: tuple[str, ...] = NAMES, bound_seconds: float = QUICK_SECONDS
) -> Callable[[Run], Run]:
    """Register a fault under the name of its function; the docstring is for docs/faults.md."""

    def register(run: Run) -> Run:
        about = " ".join((run.__doc__ or "").split())
        ATTACKS[run.__name__] = Attack(run, engines, bound_seconds, about)  # type: ignore[attr-defined]
        return run

    return register


def names_for(engine: str) -> list[str]:
    """Return the names of the faults of an engine, in order."""
    return [name for name, one in ATTACKS.items() if engine in one.engines]


# Links: those of the watchers, and those of servers and publishers to the engine.

Way = Callable[[HostileProxy, random.Random], contextlib.AbstractContextManager[Any]]


def _cut(link: HostileProxy, rng: random.Random) -> contextlib.AbstractContextManager[Any]:
    link.cut()
    return contextlib.nullcontext()


WAYS: dict[str, tuple[Way, str]] = {
    "cut": (_cut, "are cut"),
    "lose_answers": (lambda link, rng: link.losing_responses(), "are cut after a send"),
    "stop": (lambda link, rng: link.stalled(), "are open, and nothing goes through"),
    "half_open": (lambda link, rng: link.half_open(), "lose what the server sends"),
    "delay": (lambda link, rng: link.delaying(rng.uniform(0.05, 0.3)), "are delayed"),
    "slow": (lambda link, rng: link.delaying(0.02, 400), "carry 20 kB a second"),
    "refuse": (lambda link, rng: link.refusing(), "are refused"),
    "reorder": (lambda link, rng: link.reordering(), "are cut, and overtake each other"),
}


def _register_links() -> None:
    def make(way: Way, of_engine: bool) -> Run:
        async def run(world: World, rng: random.Random) -> None:
            links = world.engine_links if of_engine else world.web_links
            chosen = rng.sample(links, rng.randint(1, len(links)))
            with contextlib.ExitStack() as stack:
                for link in chosen:
                    stack.enter_context(way(link, rng))
                await asyncio.sleep(rng.uniform(0.1, 1.2))

        return run

    for name, (way, about) in WAYS.items():
        for of_engine in (False, True):
            whose, engines = ("engine", SINGLE) if of_engine else ("page", NAMES)
            links = "to the engine" if of_engine else "of pages"
            ATTACKS[f"{whose}_links_{name}"] = Attack(
                make(way, of_engine), engines, QUICK_SECONDS, f"Connections {links} {about}."
            )


_register_links()


# The engine.


def _lead_to_first(world: World, *, cut: bool) -> None:
    for link in world.engine_links:
        link.target = world.engine.first.port  # type: ignore[attr-defined]
        if cut:
            link.cut()


@attack(bound_seconds=ELECTION_SECONDS)
async def engine_hangs(world: World, rng: random.Random) -> None:
    """A server of the engine answers nothing for a while; its connections stay open."""
    victim = await in_thread(world.engine.victim, rng)
    await in_thread(victim.pause)  # type: ignore[attr-defined]
    await asyncio.sleep(rng.uniform(0.2, 2.0))
    victim.resume()  # type: ignore[attr-defined]
    await in_thread(world.engine.mend)


@attack(bound_seconds=ELECTION_SECONDS)
async def engine_killed(world: World, rng: random.Random) -> None:
    """A server of the engine is killed, and started again with its data."""
    victim = await in_thread(world.engine.victim, rng)
    await in_thread(victim.kill)  # type: ignore[attr-defined]
    await asyncio.sleep(rng.uniform(0.1, 1.0))
    await in_thread(world.engine.mend)


@attack(SINGLE)
async def engine_wiped(world: World, rng: random.Random) -> None:
    """The server is killed, and started again without its data."""
    victim = await in_thread(world.engine.victim, rng)
    await in_thread(victim.kill)  # type: ignore[attr-defined]
    victim.wipe()  # type: ignore[attr-defined]
    await asyncio.sleep(rng.uniform(0.0, 0.5))
    await in_thread(world.engine.mend)


async def _fail_over(world: World, rng: random.Random, *, behind: bool, cut: bool) -> None:
    engine: Any = world.engine
    if behind:
        await in_thread(engine.detach)
        await asyncio.sleep(rng.uniform(0.1, 0.5))
    await in_thread(engine.fail_over, rng)
    _lead_to_first(world, cut=cut)
    await in_thread(engine.mend)


@attack(REPLICATED)
async def failover_cut(world: World, rng: random.Random) -> None:
    """The replica is promoted, the address leads to it, and all connections are cut."""
    await _fail_over(world, rng, behind=False, cut=True)


@attack(REPLICATED)
async def failover_uncut(world: World, rng: random.Random) -> None:
    """The replica is promoted, and connections to the demoted server stay open."""
    await _fail_over(world, rng, behind=False, cut=False)


@attack(REPLICATED)
async def failover_behind_cut(world: World, rng: random.Random) -> None:
    """A replica that lags is promoted: acknowledged events are lost; connections are cut."""
    await _fail_over(world, rng, behind=True, cut=True)


@attack(REPLICATED)
async def failover_behind_uncut(world: World, rng: random.Random) -> None:
    """A replica that lags is promoted, and connections to the demoted server stay open."""
    await _fail_over(world, rng, behind=True, cut=False)


@attack(("sentinel", "cluster"), ELECTION_SECONDS)
async def failover_asked(world: World, rng: random.Random) -> None:
    """An operator lets the engine promote a replica while the first server lives."""
    await in_thread(world.engine.fail_over, rng)
    await in_thread(world.engine.mend)


@attack(("sentinel", "cluster"), ELECTION_SECONDS)
async def failover_elected(world: World, rng: random.Random) -> None:
    """The server that has the topic dies, and the engine elects another; the old one returns."""
    engine = world.engine
    victim: Any = await in_thread(engine.victim, rng)
    await in_thread(victim.kill)

    async def promoted() -> bool:
        with contextlib.suppress(Exception):
            return await in_thread(engine.victim, rng) is not victim
        return False

    async with asyncio.timeout(30):
        while not await promoted():
            await asyncio.sleep(0.1)
    await in_thread(engine.mend)


# Web servers, credentials, retention, clocks.


@attack()
async def server_killed(world: World, rng: random.Random) -> None:
    """A web server is killed, and replaced by another."""
    await _replace(world, rng, kill=True)


@attack()
async def server_drained(world: World, rng: random.Random) -> None:
    """A web server is replaced by another, and ends by SIGTERM."""
    await _replace(world, rng, kill=False)


async def _replace(world: World, rng: random.Random, *, kill: bool) -> None:
    place = rng.randrange(len(world.servers))
    old = world.servers[place]
    if kill:
        old.kill()
    new = await world.start_server(place)
    world.servers[place], world.web_links[place].target = new, new.port
    if not kill:
        old.stop()
        await old.wait_ended(15)


@attack()
async def tokens_expire(world: World, rng: random.Random) -> None:
    """The credentials of pages expire; they reconnect with new ones."""
    chosen = [w for w in world.watchers if w.kind in ("native", "sse", "compat")]
    for watcher in chosen:
        watcher.token_seconds = 1.5
    for link in world.web_links:
        link.cut()
    await asyncio.sleep(1.0)
    for watcher in chosen:
        watcher.token_seconds = 600.0
    await asyncio.sleep(1.0)


@attack()
async def pages_away_while_trimmed(world: World, rng: random.Random) -> None:
    """Pages are away while more events are published than the log keeps."""
    with contextlib.ExitStack() as stack:
        for link in world.web_links:
            stack.enter_context(link.refusing())
        for _ in range(KEPT_EVENTS // 100 + 1):
            for _ in range(100):
                world.emit(0)
            await asyncio.sleep(0.05)


@attack()
async def clocks_step(world: World, rng: random.Random) -> None:
    """The clocks of the web servers are set by up to two hours, and back."""
    async with httpx.AsyncClient(timeout=10) as http:
        for seconds in (rng.uniform(-7200, 0), 0):
            for server in world.servers:
                answer = await http.post(f"{server.http_url}/step", params={"seconds": seconds})
                answer.raise_for_status()
            await asyncio.sleep(rng.uniform(0.3, 0.8))
