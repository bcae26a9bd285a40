"""Reading files as text, and splitting text into chunks."""

import codecs
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path, PurePath
from typing import BinaryIO

_FORMATS = (
    "txt text md markdown rst adoc org tex log html htm xml json jsonl csv tsv yaml yml toml ini"
    " cfg py js ts css sql sh c h cpp go rs java rb"
)
SUFFIXES = frozenset(f".{name}" for name in _FORMATS.split())
"""The known text types: no other file is listed, stored or indexed."""

CHUNK_CHARACTERS = 1200


class Unreadable(Exception):
    """The file cannot be read as text; the message is the reason, for people."""


def encodable(text: str) -> str:
    """Replace what UTF-8 cannot encode: half of a surrogate pair.

    >>> encodable("a\\ud800b")
    'a?b'
    """
    return text.encode(errors="replace").decode()


def is_text_name(name: str) -> bool:
    """Return True if a file of this name is of a known text type.

    >>> is_text_name("notes/Plan.MD"), is_text_name("id_rsa"), is_text_name(".env")
    (True, False, False)
    """
    return PurePath(name).suffix.lower() in SUFFIXES


def check_upload(name: str, content: BinaryIO) -> None:
    """Check the type and the first 64 KiB of a file; its position is the start again afterwards.

    Raises:
        Unreadable: It is not a text.
    """
    if not is_text_name(name):
        kind = PurePath(name).suffix.removeprefix(".").upper()
        what = f"{kind} files are" if kind else "files without a known ending are"
        raise Unreadable(f"{what} not read here, only text such as .txt, .md, .html or .csv")
    start = content.read(1 << 16)
    content.seek(0)
    if _is_binary(start):
        raise Unreadable("its content is not text")


def _is_binary(content: bytes) -> bool:
    return b"\0" in content and not _is_utf16(content)


def _is_utf16(content: bytes) -> bool:
    return content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def read_text(path: Path, max_bytes: int) -> str:
    """Return a file's text; of an HTML page the visible text.

    Raises:
        Unreadable: The file is missing, larger than max_bytes, binary, or not UTF-8 or UTF-16.
    """
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise Unreadable(error.strerror or "cannot be read") from error
    if len(content) > max_bytes:
        raise Unreadable(f"larger than {max_bytes / 2**20:.3g} MiB")
    if _is_binary(content):
        raise Unreadable("not a text file")
    try:
        text = content.decode("utf-16" if _is_utf16(content) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8 text (byte {error.start})") from error
    if path.suffix.lower() in {".html", ".htm"}:
        page = _Page()
        page.feed(text)
        page.close()
        text = "".join(page.parts)
    return text


class _Page(HTMLParser):
    """Collects the visible text; a block element begins a new paragraph."""

    HIDDEN = frozenset({"script", "style", "template", "noscript"})
    INLINE = frozenset("a abbr b cite code em i kbd mark q s small span strong sub sup u".split())  # noqa: SIM905

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        """Pieces of the visible text, in order."""
        self._hidden = 0
        """Depth of open elements whose text is not visible."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.HIDDEN:
            self._hidden += 1
        elif tag not in self.INLINE:
            self.parts.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.HIDDEN:
            self._hidden = max(0, self._hidden - 1)

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def split(text: str, max_characters: int = CHUNK_CHARACTERS) -> Iterator[str]:
    """Split a text into chunks, between paragraphs where possible, else between words.

    >>> list(split("one two\\n\\nthree four", 12))
    ['one two', 'three four']
    >>> list(split("one two three", 8))
    ['one two', 'three']
    """
    chunk = ""
    for paragraph in re.split(r"\n\s*\n", text):
        for piece in _pieces(paragraph.strip(), max_characters):
            if chunk and len(chunk) + 2 + len(piece) > max_characters:
                yield chunk
                chunk = ""
            chunk = f"{chunk}\n\n{piece}" if chunk else piece
    if chunk:
        yield chunk


def _pieces(paragraph: str, max_characters: int) -> Iterator[str]:
    start = 0
    while len(paragraph) - start > max_characters:
        end = start + max_characters
        space = max(paragraph.rfind(" ", start, end + 1), paragraph.rfind("\n", start, end + 1))
        if space > start:
            end = space
        yield paragraph[start:end].rstrip()
        start = end
        while start < len(paragraph) and paragraph[start].isspace():
            start += 1
    if start < len(paragraph):
        yield paragraph[start:]
