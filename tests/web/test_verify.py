"""``semantik-realtime verify`` against real web servers: a right one, and wrong ones."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from configuration import SECRET, environment, make_settings, token
from web_servers import server_processes

from semantik_realtime.cli import cli, event_stream
from semantik_realtime.cli import verify as verify_module
from semantik_realtime.config import Settings
from semantik_realtime.errors import RealtimeError
from semantik_realtime.runtime import Runtime
from semantik_realtime.testing.servers import Server
from semantik_realtime.testing.tcp_proxy import TcpProxy

COMMAND = [sys.executable, "-c", "from semantik_realtime.cli import main; main()", "verify"]
SHORT = ["--seconds", "2", "--rate", "40", "--seed", "3"]


@pytest.fixture
def settings(server_url: Callable[[str], str]) -> Settings:
    return make_settings(server_url("valkey"))


async def verify(
    url: str, settings: Settings, *options: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the command with the settings of the web server."""
    return await asyncio.to_thread(
        subprocess.run,
        [*COMMAND, url, *SHORT, *options],
        env={**os.environ, **environment(settings), **variables},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.stdout, done.stderr
    return {one["subject"]: one["is_right"] for one in json.loads(done.stdout)["findings"]}


async def test_a_server_that_keeps_the_guarantees_passes_although_connections_break(
    settings: Settings,
) -> None:
    async with server_processes(1, settings) as [server]:
        done = await verify(server.http_url, settings, "--json")
        found = findings(done)
        assert found["G3 no silent gap"] is True, done.stdout
        assert False not in found.values(), done.stdout
        assert done.returncode == 0
        shown = await verify(server.http_url, settings, "--token", token("a user"))
        assert shown.returncode == 0, shown.stdout
        assert "ok" in shown.stdout
        assert "seed 3" in shown.stdout


async def test_a_server_that_shows_a_job_to_everybody_fails(settings: Settings) -> None:
    async with server_processes(
        1, settings, SEMANTIK_REALTIME_DISABLE_AUTH="1", SEMANTIK_REALTIME_ENVIRONMENT="test"
    ) as [server]:
        done = await verify(server.http_url, settings, "--json")
    assert done.returncode == 1
    assert findings(done)["G7 no silence"] is False


async def test_a_server_with_another_backend_or_secret_is_explained(settings: Settings) -> None:
    other = make_settings(settings.url or "")
    async with server_processes(1, other) as [server]:
        elsewhere = await verify(server.http_url, settings)
        stranger = await verify(server.http_url, other, SEMANTIK_REALTIME_JWT_SECRET="b" * 40)
    assert (elsewhere.returncode, stranger.returncode) == (1, 1)
    assert "Does it use the same backend as this command" in elsewhere.stderr
    assert "401" in stranger.stderr
    assert "the same secret" in stranger.stderr


@pytest.mark.parametrize("backend", ["healthy", "hangs"])
async def test_a_run_that_is_terminated_ends_soon_and_deletes_its_job(
    server: Server, backend: str
) -> None:
    settings = make_settings(server.url)
    runtime = Runtime(settings)
    async with server_processes(1, settings) as [web]:
        verifying = await asyncio.create_subprocess_exec(
            *(*COMMAND, web.http_url, "--seconds", "60", "--job", "42"),
            env={**os.environ, **environment(settings)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(60):
                while (top := await runtime._top("job:42")) is None or top.cursor.offset < 5:
                    await asyncio.sleep(0.2)
            if backend == "hangs":
                server.pause()
            verifying.terminate()
            # Three seconds are promised; a busy machine may need more.
            await asyncio.wait_for(verifying.wait(), 7)
            if backend == "healthy":
                assert await runtime._top("job:42") is None
        finally:
            if backend == "hangs":
                server.resume()
            if verifying.returncode is None:
                verifying.kill()
                await verifying.wait()
    runtime.close()


@pytest.mark.parametrize("fault", ["refusing", "losing_responses", "stalled"])
async def test_a_fault_that_is_cancelled_in_its_middle_is_over(fault: str) -> None:
    """The last one of a run is: a watcher behind it would never get the end."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, TcpProxy(server.sockets[0].getsockname()[1]) as proxy:
        with pytest.raises(asyncio.CancelledError), getattr(proxy, fault)():
            raise asyncio.CancelledError
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"hello\n")
        assert await asyncio.wait_for(reader.readline(), 5) == b"hello\n"
        writer.close()


def test_a_job_that_exists_is_neither_used_nor_deleted(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    runtime = Runtime(settings)
    asyncio.run(runtime.publish("job:42", "job_started", state={"status": "running"}, owner="7"))
    arguments = ["verify", f"http://127.0.0.1:{unused_tcp_port}", *SHORT, "--job", "42"]
    with pytest.raises(RealtimeError, match="exists already"):
        cli([*arguments, "--token", token("7")], standalone_mode=False)
    top = asyncio.run(runtime._top("job:42"))
    runtime.close()
    assert top is not None
    assert top.cursor.offset == 1


def test_a_server_that_accepts_and_never_answers_is_no_traceback(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "JOIN_SECONDS", 1.0)
    monkeypatch.setattr(event_stream, "CONNECT_SECONDS", 1.0)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RealtimeError, match=r"did not answer|cannot be watched"):
            cli(["verify", url, *SHORT], standalone_mode=False)


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"SEMANTIK_REALTIME_BACKEND": "memory"}, "needs the web server's backend"),
        ({"SEMANTIK_REALTIME_JWT_SECRET": ""}, "give --token"),
        ({"SEMANTIK_REALTIME_TOKEN": "rubbish"}, "is not a JWT"),
        ({"SEMANTIK_REALTIME_TOKEN": jwt.encode({"name": "7"}, SECRET)}, "has no 'sub'"),
        ({}, "cannot be watched"),
    ],
)
def test_what_is_missing_for_a_run_is_named(
    settings: Settings,
    variables: dict[str, str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    unused_tcp_port: int,
) -> None:
    for name, value in {**environment(settings), **variables}.items():
        monkeypatch.setenv(name, value)
    arguments = ["verify", f"http://127.0.0.1:{unused_tcp_port}", *SHORT]
    with pytest.raises(RealtimeError, match=sentence):
        cli(arguments, standalone_mode=False)
