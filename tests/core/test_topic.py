"""Names are accepted exactly by the grammar of docs/protocol.md."""

import string
import unicodedata
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semantik_realtime.core.topic import (
    check_key,
    check_topic,
    check_type,
    job_topic,
    name_topic,
    split_topic,
    user_topic,
)
from semantik_realtime.errors import EventError, TopicError

LOWER, DIGITS = string.ascii_lowercase, string.digits
NAME = string.ascii_letters + DIGITS + "_"
near_topics = st.builds(
    "{}{}{}".format,
    st.text(LOWER + DIGITS + "_A:é", max_size=34),
    st.sampled_from(["", ":", "::"]),
    st.text(NAME + ".@=+~-/: \n\u0661", max_size=202),
)


def is_topic(text: str) -> bool:
    """The grammar, character by character."""
    kind, colon, ident = text.partition(":")
    return (
        colon == ":"
        and 1 <= len(kind) <= 32
        and kind[0] in LOWER
        and set(kind) <= set(LOWER + DIGITS + "_")
        and 1 <= len(ident) <= 200
        and ident[0] in NAME
        and set(ident) <= set(NAME + ".@=+~-")
    )


@given(near_topics | st.text())
def test_a_topic_is_accepted_exactly_by_the_grammar(text):
    try:
        accepted = check_topic(text) == text
    except TopicError:
        accepted = False
    assert accepted == is_topic(text)


@given(st.from_regex(r"[a-z][a-z0-9_]{0,31}:[A-Za-z0-9_][A-Za-z0-9_.@=+-]{0,199}", fullmatch=True))
def test_kind_and_id_together_are_the_topic(topic):
    assert ":".join(split_topic(topic)) == topic


@pytest.mark.parametrize("value", [None, 42, b"job:42", ["job:42"], {"job:42": 1}])
def test_a_topic_is_a_string(value):
    with pytest.raises(TopicError, match="not a topic name"):
        check_topic(value)


def test_a_refused_name_is_shortened_in_the_message():
    with pytest.raises(TopicError) as refused:
        check_topic("x" * 100_000)
    assert len(str(refused.value)) < 200


def test_an_id_cannot_smuggle_in_another_kind():
    for ident in ("../x", "1:2", "a/b", "a b"):
        for kind, name in (("job", job_topic), ("user", user_topic)):
            assert split_topic(check_topic(name(ident))) == (kind, ident)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=60))
def test_every_id_has_a_topic_of_its_own_that_gives_it_back(ident):
    try:
        topic = job_topic(ident)
    except TopicError:
        # Each character has up to four bytes, of three characters each.
        assert sum(3 * len(character.encode()) for character in ident) >= 200
        return
    assert split_topic(check_topic(topic)) == ("job", ident)
    assert name_topic(topic) == topic
    if set(ident) <= set(NAME + ".@=+-") and ident[0] in NAME:
        assert topic == f"job:{ident}"


@given(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.@=+~-]{0,30}", fullmatch=True))
def test_every_topic_is_that_of_one_id(ident):
    assert job_topic(split_topic(f"job:{ident}")[1]) == f"job:{ident}"


@pytest.mark.parametrize("ident", [7, uuid.UUID(int=1)])
def test_an_id_may_be_an_integer_or_a_uuid(ident):
    assert job_topic(ident) == f"job:{ident}"


@pytest.mark.parametrize(
    "ident", ["", "1\n", "a\x00", "\ud800", "x" * 201, None, True, b"1", ["1"], 1.5]
)
def test_what_is_no_id_is_refused(ident):
    for name in (job_topic, user_topic):
        with pytest.raises(TopicError):
            name(ident)


@given(st.text(LOWER + DIGITS + "_.A-\n é", max_size=70))
def test_a_type_is_accepted_exactly_by_the_grammar(text):
    expected = 1 <= len(text) <= 64 and text[0] in LOWER and set(text) <= set(LOWER + DIGITS + "_.")
    try:
        accepted = check_type(text) == text
    except EventError:
        accepted = False
    assert accepted == expected


@given(
    st.text(max_size=4)
    | st.builds(lambda one, times: one * times, st.characters(), st.integers(0, 210))
)
def test_a_key_has_1_to_200_characters_without_control_characters(text):
    expected = 1 <= len(text) <= 200 and not any(
        unicodedata.category(character) in ("Cc", "Cs") for character in text
    )
    try:
        accepted = check_key(text) == text
    except EventError:
        accepted = False
    assert accepted == expected


@pytest.mark.parametrize("value", [None, 42, b"a", ("a",)])
def test_a_type_and_a_key_are_strings(value):
    with pytest.raises(EventError, match="not an event type"):
        check_type(value)
    with pytest.raises(EventError, match="not a key"):
        check_key(value)
