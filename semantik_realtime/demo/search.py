"""Full-text search over one user's documents: an SQLite file with FTS5."""

import re
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from semantik_realtime.demo.private import create_private_file, make_private_folder

_SCHEMA = """
CREATE TABLE IF NOT EXISTS chunk (
    id INTEGER PRIMARY KEY,
    document_id INTEGER NOT NULL,
    title TEXT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS chunk_document ON chunk (document_id);
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5 (
    title, body, content='chunk', content_rowid='id',
    tokenize="porter unicode61 remove_diacritics 2"
);
CREATE TRIGGER IF NOT EXISTS chunk_inserted AFTER INSERT ON chunk BEGIN
    INSERT INTO words (rowid, title, body) VALUES (new.id, new.title, new.body);
END;
CREATE TRIGGER IF NOT EXISTS chunk_deleted AFTER DELETE ON chunk BEGIN
    INSERT INTO words (words, rowid, title, body)
    VALUES ('delete', old.id, old.title, old.body);
END;
"""

_HIT, _END = "\x02", "\x03"
"""Control characters that mark the start and the end of a hit in a snippet."""


@dataclass(frozen=True, slots=True)
class Found:
    """A document that matches the query."""

    document_id: int
    title: str
    snippet: list[tuple[str, bool]]
    """The best passage as pieces of text; True marks a hit."""
    passages: int
    """How many passages match."""


class SearchIndex:
    """The open index of one user: a context manager, for use in one thread."""

    def __init__(self, path: Path) -> None:
        make_private_folder(path.parent)
        if not path.exists():
            create_private_file(path)
        self._database = sqlite3.connect(path, timeout=30)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.executescript(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._database.close()

    def replace(self, document_id: int, title: str, chunks: Iterable[str]) -> int:
        """Replace a document's chunks in one transaction; return their number."""
        with self._database:
            self._database.execute("DELETE FROM chunk WHERE document_id = ?", (document_id,))
            cursor = self._database.executemany(
                "INSERT INTO chunk (document_id, title, body) VALUES (?, ?, ?)",
                ((document_id, title, chunk) for chunk in chunks),
            )
        return max(0, cursor.rowcount)

    def remove(self, document_id: int) -> None:
        self.replace(document_id, "", ())

    def search(self, query: str, limit: int = 20) -> list[Found]:
        """Return the documents that have every word, the best first; the last word is a prefix."""
        expression = match_expression(query)
        if not expression:
            return []
        rows = self._database.execute(
            """
            SELECT chunk.document_id, chunk.title,
                   snippet(words, 1, ?, ?, '…', 28)
            FROM words JOIN chunk ON chunk.id = words.rowid
            WHERE words MATCH ? ORDER BY bm25(words, 4.0, 1.0) LIMIT 500
            """,
            (_HIT, _END, expression),
        )
        best: dict[int, tuple[str, str]] = {}
        passages: dict[int, int] = {}
        for document_id, title, snippet in rows:
            best.setdefault(document_id, (title, snippet))
            passages[document_id] = passages.get(document_id, 0) + 1
        return [
            Found(document_id, title, _split_hits(snippet), passages[document_id])
            for document_id, (title, snippet) in list(best.items())[:limit]
        ]


def match_expression(query: str) -> str:
    """Return an FTS5 expression of the words in a query, without operators.

    >>> match_expression('live "NEAR upd')
    '"live" "NEAR" "upd"*'
    >>> match_expression('-*"')
    ''
    """
    words = re.findall(r"\w+", query)[:16]
    return " ".join(f'"{word}"' for word in words) + "*" if words else ""


def _split_hits(snippet: str) -> list[tuple[str, bool]]:
    pieces: list[tuple[str, bool]] = []
    for number, part in enumerate(snippet.split(_HIT)):
        hit, end, rest = part.partition(_END)
        if number and end:
            pieces.append((hit, True))
        else:
            rest = part
        if rest:
            pieces.append((rest, False))
    return pieces
