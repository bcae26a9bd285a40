"""Files and folders that only the user of this process can read."""

import os
from pathlib import Path
from typing import BinaryIO


def make_private_folder(path: Path) -> None:
    """Create a folder with the mode 0700; one that exists keeps its mode, which its owner chose."""
    # `Path.mkdir` gives its mode to the last part alone.
    for missing in reversed([parent for parent in (path, *path.parents) if not parent.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)


def open_private(path: Path) -> BinaryIO:
    """Open a new or emptied file for writing; a new one has the mode 0600."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def create_private_file(path: Path) -> None:
    """Create an empty file with the mode 0600, unless it exists.

    SQLite gives its journal and its index of the journal the mode of the database.
    """
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
