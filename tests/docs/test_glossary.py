"""The glossary explains words that are in use, each once."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
ROWS = re.findall(r"^\| ([a-z ]+) \| (?!meaning)(.+) \| ?(.*) ?\|$", GLOSSARY.read_text(), re.M)
WORDS = [word for word, *_ in ROWS]

TEXT = re.sub(
    # CamelCase is several words.
    "(?<=[a-z])(?=[A-Z])",
    " ",
    " ".join(
        path.read_text()
        for pattern in ("*.md", "docs/**/*.md", "semantik_realtime/**/*.*", "plugins/**/*.*")
        for path in ROOT.glob(pattern)
        if path.suffix in {".md", ".py", ".js", ".lua"} and path != GLOSSARY
    ),
)


def test_the_words_are_found() -> None:
    assert len(WORDS) > 40
    assert {"topic", "cursor", "fence"} <= set(WORDS)


@pytest.mark.parametrize("word", WORDS)
def test_a_word_of_the_glossary_is_used_in_code_or_pages(word: str) -> None:
    # "conflate" also as conflates, conflated and conflating; "circuit breaker" as CircuitBreaker.
    stem = word.removesuffix("e").replace(" ", r"[\s_]?")
    assert re.search(rf"(?<![a-z]){stem}(e|es|ed|s|d|ing|al|y)?(?![a-z])", TEXT, re.IGNORECASE)


def test_no_word_is_explained_twice() -> None:
    assert [word for word, count in Counter(WORDS).items() if count > 1] == []


def test_the_words_of_each_topic_are_in_alphabetical_order() -> None:
    for section in GLOSSARY.read_text().split("\n## ")[1:]:
        words = re.findall(r"^\| ([a-z ]+) \| (?!meaning)", section, re.MULTILINE)
        assert words == sorted(words), section.partition("\n")[0]
