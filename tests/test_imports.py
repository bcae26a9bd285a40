"""Importing any module needs no server, opens no socket and reads no setting (G6)."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import semantik_realtime

PROBE = """
import importlib, json, pkgutil, sys

used = []

def audit(event, args):
    # Recorded too, because the module may catch the error.
    if event.startswith("socket.") and event != "socket.gethostname":
        used.append(event)
        raise RuntimeError(f"{event} during an import")

sys.addaudithook(audit)

faults, imported = {}, []

def bring_in(name):
    used.clear()
    try:
        importlib.import_module(name)
    except BaseException as error:
        faults[name] = f"{type(error).__name__}: {error}"
        return
    if used:
        faults[name] = ", ".join(used)
    imported.append(name)

package = sys.argv[1]
bring_in(package)
if not faults:
    pages = sys.modules[package].__path__
    # walk_packages imports the packages it descends into; what fails there is a fault too.
    for info in pkgutil.walk_packages(pages, package + ".", onerror=lambda name: None):
        bring_in(info.name)
print(json.dumps({"faults": faults, "imported": imported}))
"""


def import_all(package: str, *paths: Path) -> dict:
    """Import a package and everything in it, in a fresh process with an empty environment."""
    lines = [f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}", PROBE]
    done = subprocess.run(
        [sys.executable, "-I", "-c", "\n".join(lines), package],
        env={},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_module_can_be_imported_without_a_server_a_setting_or_a_socket():
    answer = import_all("semantik_realtime")
    assert answer["faults"] == {}
    folder = Path(semantik_realtime.__file__).parent
    files = {
        ".".join(
            ["semantik_realtime", *file.relative_to(folder).with_suffix("").parts]
        ).removesuffix(".__init__")
        for file in folder.rglob("*.py")
    }
    assert files == set(answer["imported"])


def test_a_module_that_opens_a_socket_or_fails_is_found(tmp_path):
    package = tmp_path / "naughty"
    package.mkdir()
    modules = {
        "__init__": "",
        "opens": "import socket; socket.socket()",
        "swallows": """
            import socket
            try:
                socket.create_connection(("127.0.0.1", 1))
            except Exception:
                pass
        """,
        "resolves": "import socket; socket.getaddrinfo('localhost', 80)",
        "below": "import _socket; _socket.socket()",
        "asks": "import os; os.environ['REDIS_URL']",
        "ends": "raise SystemExit(0)",
        "good": "import socket",
    }
    for name, text in modules.items():
        (package / f"{name}.py").write_text(textwrap.dedent(text))
    answer = import_all("naughty", tmp_path)
    assert set(answer["faults"]) == {
        f"naughty.{name}" for name in ("opens", "swallows", "resolves", "below", "asks", "ends")
    }
    assert set(answer["imported"]) == {"naughty", "naughty.good", "naughty.swallows"}
