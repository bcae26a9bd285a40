"""An application with the npm package, in a folder of its own."""

from __future__ import annotations

import importlib.resources
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
STATIC = Path(str(importlib.resources.files("semantik_realtime.web"))) / "static"
SECONDS = 240


class Application:
    """A folder with the files beside this one, and what their package.json names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, program: str, *arguments: str | Path) -> str:
        """Run a program of the folder, or of the machine, in it; return what it wrote."""
        path = self.folder / "node_modules" / ".bin" / program
        return output(self.folder, path if path.exists() else program, *arguments)


def output(folder: Path, *command: str | Path) -> str:
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout
