"""The examples of docs/deployment.md: nginx passes every wire, the script measures memory."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from packaging.version import Version
from programs import wait_for, wait_until_healthy
from strangers import MESSAGES, sending
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from semantik_realtime.config import load_settings
from semantik_realtime.core.session import SUBPROTOCOL
from semantik_realtime.runtime import Runtime
from semantik_realtime.testing.servers import free_port

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deployment.md").read_text()
SIZING = ROOT / "docs" / "examples" / "sizing.py"

WHOLE = """
daemon off;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {}
}}
"""
"""The rest of the configuration, so that nginx writes only to its own folder."""


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found, language
    return found[1]


@pytest.fixture
def proxy(tmp_path: Path, server_url: Callable[[str], str]) -> Iterator[str]:
    """The address of nginx, with the page's configuration, in front of a web server."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if program is None:
        pytest.skip("nginx is missing: apt-get install nginx")
    port = free_port()
    serve: Any = runpy.run_path(str(SIZING))["web_server"]
    with serve(server_url("valkey")) as (web_port, _):
        config = block("nginx").replace("listen 80;", f"listen 127.0.0.1:{port};")
        assert f":{port};" in config
        for example_port in (8000, 8001):
            assert f"127.0.0.1:{example_port};" in config
            config = config.replace(f":{example_port};", f":{web_port};")
        # nginx uses no server for 10 s that refused a connection, so all must be up before it.
        wait_until_healthy(f"127.0.0.1:{web_port}")
        (tmp_path / "nginx.conf").write_text(WHOLE.format(config))
        process = subprocess.Popen([program, "-p", str(tmp_path), "-c", "nginx.conf"])
        try:
            wait_until_healthy(f"127.0.0.1:{port}")
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


async def test_the_nginx_configuration_passes_both_wires_and_the_origin(proxy: str) -> None:
    async with connect(
        f"ws://{proxy}/realtime/ws", subprotocols=[SUBPROTOCOL], origin=f"http://{proxy}"
    ) as native:
        assert native.subprotocol == SUBPROTOCOL
        assert json.loads(await native.recv())["op"] == "welcome"
    async with connect(f"ws://{proxy}/ws/jobs/1", origin=f"http://{proxy}") as compat:
        await compat.send("ping")
        while json.loads(await compat.recv())["type"] != "pong":
            pass
    # In development the browser shows why; in production the handshake is refused.
    async with connect(f"ws://{proxy}/realtime/ws", origin="http://elsewhere.example") as foreign:
        with pytest.raises(ConnectionClosed, match="4403"):
            await foreign.recv()
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"http://{proxy}/realtime/static/realtime.js")
    assert "export function connect" in answer.text


def every_command() -> list[list[str]]:
    """The options of each uvicorn command of the page, its Kubernetes part included."""
    lines = [line.split()[2:] for line in re.findall(r"^uvicorn .*$", PAGE, re.MULTILINE)]
    [pod] = re.findall(r"command: \[uvicorn, (.*?)\]", PAGE, re.DOTALL)
    return [*lines, [part.strip(' \n"') for part in pod.split(",")][1:]]


def test_every_command_has_the_options_that_limit_strangers() -> None:
    [options] = re.findall(r"^(--http .*)$", PAGE, re.MULTILINE)
    assert len(every_command()) == 4
    for command in every_command():
        assert options in " ".join(command)
    given = dict(re.findall(r'"(\w+)": ([^,]+),', block("python")))
    names = re.findall(r"--([\w-]+) (\S+)", options)
    assert {name.replace("-", "_"): value for name, value in names} == {
        name: value.strip('"').lower() for name, value in given.items()
    }
    assert given.keys() <= set(inspect.signature(uvicorn.Config).parameters)
    for page in ("README.md", "docs/quickstart.md"):
        [command] = re.findall(r"^uvicorn .*$", (ROOT / page).read_text(), re.MULTILINE)
        for option in ("--http h11", "--ws-max-size 65536"):
            assert option in command


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process in /proc")
@pytest.mark.parametrize("kind", list(MESSAGES))
@pytest.mark.parametrize("library", ["websockets", "websockets-sansio", "wsproto"])
async def test_with_these_options_strangers_fill_no_memory(library: str, kind: str) -> None:
    if library == "wsproto":
        if Version(uvicorn.__version__) < Version("0.46"):
            pytest.skip("wsproto has no limit before uvicorn 0.46, as the page says")
    elif library not in uvicorn.config.WS_PROTOCOLS:
        pytest.skip("this uvicorn has no websockets-sansio")
    example = runpy.run_path(str(SIZING))
    options = every_command()[0]
    # No client authenticates, so the server needs no backend.
    with example["web_server"]("redis://127.0.0.1:1/0", *options, "--ws", library) as (port, pid):
        wait_for(lambda: httpx.get(f"http://127.0.0.1:{port}/realtime/static/realtime.js"))
        before = example["resident_bytes"](pid)
        async with sending(port, kind, connections=15):
            grown = example["resident_bytes"](pid) - before
    # 15 messages of 15 MB.
    assert grown < 60_000_000


def test_the_commands_repeat_the_ping_defaults_of_uvicorn() -> None:
    commands = re.findall(r"^uvicorn .*$", PAGE, re.MULTILINE)
    assert len(commands) == 3
    config = uvicorn.Config("app:app")
    pings = f"--ws-ping-interval {config.ws_ping_interval:g} --ws-ping-timeout "
    for command in commands:
        assert f"{pings}{config.ws_ping_timeout:g}" in command


async def test_nginx_passes_a_stream_without_buffering(
    proxy: str, server_url: Callable[[str], str]
) -> None:
    with contextlib.closing(Runtime(load_settings(url=server_url("valkey")))) as runtime:
        async with (
            httpx.AsyncClient(timeout=10) as client,
            client.stream("GET", f"http://{proxy}/realtime/jobs/1/events") as answer,
        ):
            frames = (
                json.loads(line.removeprefix("data: "))
                async for line in answer.aiter_lines()
                if line.startswith("data: ")
            )
            assert (await anext(frames))["op"] == "sync"
            for number in range(3):
                # Each event has to arrive before the next is sent.
                await runtime.publish("job:1", "step", data={"n": number})
                received = (await anext(frames))["topics"]["job:1"]["events"]
                assert [event["data"] for event in received] == [{"n": number}]


def test_the_script_prints_four_measured_sizes(server_url: Callable[[str], str]) -> None:
    server_url("valkey")
    ran = subprocess.run(
        [sys.executable, str(SIZING), "--quick"], capture_output=True, text=True, timeout=100
    )
    assert ran.returncode == 0, ran.stderr
    sizes = [int(size.replace(",", "")) for size in re.findall(r"([\d,]+) bytes", ran.stdout)]
    assert len(sizes) == 4
    assert min(sizes) > 100
