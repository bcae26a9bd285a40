"""A user's documents: files of the server's folder, and uploaded files."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO
from uuid import uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from semantik_realtime.demo.private import make_private_folder, open_private
from semantik_realtime.demo.records import Document
from semantik_realtime.demo.search import SearchIndex
from semantik_realtime.demo.settings import DemoSettings
from semantik_realtime.demo.texts import check_upload, encodable, is_text_name

MAX_FOLDER_FILES = 5000
MAX_FOLDER_DEPTH = 12


class NotInFolder(Exception):
    """The path is not a file below the folder."""


@dataclass(frozen=True, slots=True)
class FolderFile:
    """A file that users may choose."""

    path: str
    """Relative to the folder."""
    size_bytes: int


def resolve_document(settings: DemoSettings, relative: str) -> Path:
    """Return the real path of a document of the folder.

    Raises:
        NotInFolder: The path leads out of the folder, or to a file that
            `list_folder` would not list: hidden, of no known text type, of an
            installed package, or one of the demo's own data.
    """
    root = settings.folder.resolve()
    # Of the real path, because a link may be named like a document.
    path = resolve_inside(root, relative)
    parts = path.relative_to(root).parts
    if any(_is_hidden(part) for part in parts) or not is_text_name(path.name):
        raise NotInFolder(relative)
    if any(_is_installed(root.joinpath(*parts[:depth])) for depth in range(1, len(parts))):
        raise NotInFolder(relative)
    if settings.is_own_data(path):
        raise NotInFolder(relative)
    return path


def resolve_inside(root: Path, relative: str) -> Path:
    """Return the real path of a file below root.

    Raises:
        NotInFolder: The path is not a file, or leads out of root by ``..``, an
            absolute path or a symbolic link.
    """
    try:
        root = root.resolve(strict=True)
        path = (root / relative).resolve(strict=True)
    except (OSError, ValueError) as error:
        raise NotInFolder(relative) from error
    if not path.is_relative_to(root) or not path.is_file():
        raise NotInFolder(relative)
    return path


def list_folder(settings: DemoSettings) -> tuple[list[FolderFile], bool]:
    """Return the documents of the folder by name, and whether there are more than are listed.

    A document is a file of a known text type. Not listed are hidden files and
    folders, virtual environments, ``node_modules``, symbolic links, and the
    demo's own data.
    """
    root = settings.folder.resolve()
    visible = (path for path in _walk(root, MAX_FOLDER_DEPTH) if not settings.is_own_data(path))
    found = list(islice(visible, MAX_FOLDER_FILES + 1))
    files = [
        FolderFile(path.relative_to(root).as_posix(), path.stat().st_size)
        for path in found[:MAX_FOLDER_FILES]
    ]
    return files, len(found) > MAX_FOLDER_FILES


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name.casefold())
    except OSError:
        return
    for entry in entries:
        # A name that is not UTF-8 cannot be sent to the page.
        if _is_hidden(entry.name) or encodable(entry.name) != entry.name:
            continue
        if entry.is_dir(follow_symlinks=False):
            if depth and not _is_installed(Path(entry.path)):
                yield from _walk(Path(entry.path), depth - 1)
        elif entry.is_file(follow_symlinks=False):
            if is_text_name(entry.name):
                yield Path(entry.path)


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _is_installed(folder: Path) -> bool:
    """Return True for a folder of packages of others: a virtual environment or node_modules."""
    return folder.name == "node_modules" or (folder / "pyvenv.cfg").is_file()


def locate(document: Document, settings: DemoSettings) -> Path:
    """Return the path of a document's file.

    The path is checked again before each read, because a symbolic link may
    have replaced the file since it was chosen.

    Raises:
        NotInFolder: The file is missing, is now outside its folder, or is not
            a document of the folder (`resolve_document`).
    """
    if document.origin == "upload":
        return resolve_inside(settings.uploads(document.user_id), document.stored)
    return resolve_document(settings, document.stored)


def choose(
    session: Session, user_id: int, settings: DemoSettings, paths: Iterable[str]
) -> list[Document]:
    """Return the documents of these files of the folder; add those that are new.

    Raises:
        NotInFolder: One of the paths is no document of the folder; no document was added.
    """
    root = settings.folder.resolve()
    located = {path: resolve_document(settings, path) for path in dict.fromkeys(paths)}
    known = {
        document.name: document
        for document in session.scalars(
            select(Document).where(Document.user_id == user_id, Document.origin == "folder")
        )
    }
    chosen = []
    for path in located.values():
        name = path.relative_to(root).as_posix()
        document = known.get(name)
        if document is None:
            document = Document(user_id=user_id, origin="folder", name=name, stored=name)
            session.add(document)
            known[name] = document
        document.size_bytes = path.stat().st_size
        chosen.append(document)
    session.flush()
    return list(dict.fromkeys(chosen))


def upload(
    session: Session, user_id: int, settings: DemoSettings, name: str, content: BinaryIO
) -> Document:
    """Store an uploaded file; it replaces one of the same name.

    Raises:
        Unreadable: The file is not a text; the message is a sentence for people.
    """
    name = display_name(name)
    check_upload(name, content)
    document = session.scalar(
        select(Document).where(
            Document.user_id == user_id, Document.origin == "upload", Document.name == name
        )
    )
    if document is None:
        # Not the user's name: it may be too long for the disk, or the name of a device.
        suffix = PurePosixPath(name).suffix.lower()
        stored = uuid4().hex + suffix
        document = Document(user_id=user_id, origin="upload", name=name, stored=stored)
        session.add(document)
    root = settings.uploads(user_id)
    make_private_folder(root)
    partial = root / f".{uuid4().hex}"
    try:
        with open_private(partial) as file:
            while block := content.read(1 << 20):
                file.write(block)
        document.size_bytes = partial.stat().st_size
        partial.replace(root / document.stored)
    finally:
        partial.unlink(missing_ok=True)
    document.status, document.error = "new", None
    session.flush()
    return document


def display_name(name: str) -> str:
    """Return the last part of a client's file name, without control characters.

    >>> display_name("C:\\\\notes\\\\a.txt"), display_name("../../etc/passwd"), display_name("..")
    ('a.txt', 'passwd', 'unnamed')
    """
    name = PurePosixPath(PureWindowsPath(name).as_posix()).name
    name = "".join(character for character in name if character.isprintable()).strip()
    return name[-200:] if name.strip(".") else "unnamed"


def remove(session: Session, settings: DemoSettings, document: Document) -> None:
    """Delete a document and its uploaded file; a file of the folder stays."""
    with SearchIndex(settings.search_index(document.user_id)) as index:
        index.remove(document.id)
    if document.origin == "upload":
        (settings.uploads(document.user_id) / document.stored).unlink(missing_ok=True)
    session.delete(document)
