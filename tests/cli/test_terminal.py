"""Texts of others in a terminal: what `watch` shows of a hostile server, and the pure function."""

from __future__ import annotations

import json
import socketserver
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from commandline import run
from hypothesis import given
from hypothesis import strategies as st
from websockets.sync.server import ServerConnection, serve

from semantik_realtime.cli.terminal import visible
from semantik_realtime.cli.watch import websocket_url

HOSTILE = "\x1b]52;c;cm0gLXJm\x07\x1b]0;title\x07\x1b[2J\x9b31m\u202e[bold]b[/bold][/]:smile:\r\x7f"


class HostileServer:
    """A WebSocket server whose only job fails, with hostile texts wherever the wire has texts."""

    def __init__(self, close_reason: str | None = None) -> None:
        self.paths: list[str] = []
        """Of all requests, as the server has received them."""
        self._close_reason = close_reason
        """Close each connection with it; None: send the job."""
        self._server = serve(self._answer, "127.0.0.1", 0)
        self.port = self._server.socket.getsockname()[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()

    def _answer(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.paths.append(connection.request.path)
        if self._close_reason is not None:
            connection.close(4403, self._close_reason)
            return
        self._send(connection, op="welcome", heartbeat_seconds=20)
        connection.recv()
        self._send(connection, op="degraded", since=f"2026-01-01T{HOSTILE}")
        self._send(connection, op="restored")
        state = {
            "status": "failed",
            "message": HOSTILE,
            "progress": {"current": 1, "total": 2},
            "error": {"type": "ValueError", "message": f"the disk is full {HOSTILE}"},
        }
        event = {
            "offset": 1,
            "type": f"note{HOSTILE}",
            "time": f"2026-01-01T{HOSTILE}",
            "data": {HOSTILE: HOSTILE, "half": "\ud800"},
        }
        self._send(
            connection,
            op="sync",
            topic="job:1",
            mode="snapshot",
            reason="new",
            offset=1,
            cursor="e.1.00000000",
            states={"1": state},
            events=[event],
        )
        connection.recv()

    @staticmethod
    def _send(connection: ServerConnection, **frame: Any) -> None:
        connection.send(json.dumps(frame))


@pytest.fixture
def server() -> Iterator[HostileServer]:
    hostile = HostileServer()
    yield hostile
    hostile.stop()


def controls(text: str) -> list[str]:
    """Return what a terminal may obey."""
    return [
        character
        for character in text.replace("\n", "")
        if unicodedata.category(character) in ("Cc", "Cs") or character == "\u202e"
    ]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_watch_shows_no_escape_and_no_markup_of_an_event(
    server: HostileServer, options: tuple[str, ...]
) -> None:
    done = run("watch", "1", "--url", f"ws://127.0.0.1:{server.port}/realtime/ws", *options)
    assert done.returncode == 1
    assert controls(done.stdout) == []
    assert controls(done.stderr) == []
    if not options:
        assert r"\x1b]52;c;cm0gLXJm\x07" in done.stdout
        assert r"\x9b31m\u202e[bold]b[/bold][/]:smile:\r\x7f" in done.stdout


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_watch_prints_the_error_of_a_failed_job(
    server: HostileServer, options: tuple[str, ...]
) -> None:
    done = run("watch", "1", "--url", f"ws://127.0.0.1:{server.port}/realtime/ws", *options)
    printed = done.stderr if options else done.stdout
    assert "failed: ValueError: the disk is full" in printed
    for line in done.stdout.splitlines() if options else ():
        json.loads(line)


def test_watch_prints_an_event_on_one_line_when_its_output_is_not_a_terminal(
    server: HostileServer,
) -> None:
    url = f"ws://127.0.0.1:{server.port}/realtime/ws"
    done = run("watch", "1", "--url", url, COLUMNS="40")
    [line] = [line for line in done.stdout.splitlines() if "note" in line]
    assert r"half=\ud800" in line


def test_watch_shows_no_escape_of_a_close_reason() -> None:
    server = HostileServer("\x1b]0;owned\x07[bold]no")
    try:
        done = run("watch", "1", "--url", f"ws://127.0.0.1:{server.port}/realtime/ws")
    finally:
        server.stop()
    assert done.returncode == 1
    assert controls(done.stderr) == []
    assert r"\x1b]0;owned\x07[bold]no (4403)" in done.stderr


@pytest.mark.parametrize("suffix", ["", "/", "/prefix", "/realtime/ws"])
def test_watch_takes_the_address_of_the_web_server(server: HostileServer, suffix: str) -> None:
    done = run("watch", "1", "--url", f"http://127.0.0.1:{server.port}{suffix}")
    assert "ValueError" in done.stdout, done.stderr
    prefix = "/prefix" if suffix == "/prefix" else ""
    assert server.paths == [f"{prefix}/realtime/ws"]


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://host", "ws://host/realtime/ws"),
        ("https://host:8443/", "wss://host:8443/realtime/ws"),
        ("https://host/app/", "wss://host/app/realtime/ws"),
        ("HTTP://[::1]:80/a/realtime/ws", "ws://[::1]:80/a/realtime/ws"),
        ("http://host/?token=t", "ws://host/realtime/ws?token=t"),
        ("ws://host/other", "ws://host/other"),
        ("rubbish", "rubbish"),
    ],
)
def test_an_address_becomes_the_url_of_the_websocket(address: str, url: str) -> None:
    assert websocket_url(address) == url


class _Refuse(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.server.asked = True  # type: ignore[attr-defined]


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "socks_proxy"])
@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_loopback_is_reached_without_the_proxy_of_the_environment(
    server: HostileServer, variable: str, scheme: str
) -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), _Refuse) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        address = f"{scheme}://127.0.0.1:{proxy.server_address[1]}"
        url = f"ws://localhost:{server.port}/realtime/ws"
        done = run("watch", "1", "--url", url, **{variable: address})
        proxy.shutdown()
    assert "ValueError" in done.stdout, done.stderr
    assert not hasattr(proxy, "asked")


def test_a_proxy_that_needs_a_missing_package_is_explained() -> None:
    done = run("watch", "1", "--url", "ws://host.invalid/realtime/ws", socks_proxy="socks5://x:1")
    assert done.returncode == 1
    assert "python-socks" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "extra"), [(["watch", "1"], "cli"), (["doctor"], "cli"), (["demo"], "demo")]
)
def test_a_missing_package_is_named_with_the_extra_of_the_command(
    arguments: list[str], extra: str
) -> None:
    program = "import sys; sys.modules['rich'] = None; import semantik_realtime.cli as c; c.main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert f"rich is missing: pip install 'semantik-realtime[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


@given(st.text())
def test_a_visible_text_has_no_control_character_and_loses_no_other(text: str) -> None:
    shown = visible(text)
    assert shown.encode().decode() == shown
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in shown)
    harmless = [c for c in text if visible(c) == c]
    remaining = iter(shown)
    assert all(c in remaining for c in harmless)


def test_letters_of_all_scripts_and_emoji_stay_as_they_are() -> None:
    text = "Größe 日本語 עברית 👩‍💻 می‌خواهم [x] \\"
    assert visible(text) == text


def test_lines_are_kept_where_the_caller_wants_them() -> None:
    assert visible("a\nb\x1b", keep="\n") == "a\nb\\x1b"
    assert visible("a\nb") == r"a\nb"
