"""Tokens for one topic: who can make them, and what their holder may watch."""

from __future__ import annotations

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semantik_realtime.core.secrets import read_secrets
from semantik_realtime.core.topic import plain_id
from semantik_realtime.core.topic_token import (
    MAX_SECONDS,
    PREFIX,
    Viewer,
    is_same_user,
    make_token,
    read_token,
)
from semantik_realtime.errors import AccessError, ConfigError, InvalidInput, TopicError

OLD, NEW = "o" * 32, "n" * 32
NOW = 1_800_000_000.0


def code_of(token: str, *secrets: str, now: float = NOW) -> str:
    with pytest.raises(AccessError) as caught:
        read_token(token, secrets, now)
    return caught.value.code


@settings(max_examples=25)
@given(st.from_regex(r"[a-z]{1,9}:[A-Za-z0-9_][A-Za-z0-9_.@=+-]{0,50}", fullmatch=True))
def test_a_token_names_its_topic_until_it_expires(topic: str) -> None:
    token = make_token(topic, OLD, NOW, seconds=60)
    assert read_token(token, [OLD], NOW + 59) == (Viewer(topic), NOW + 60)
    assert code_of(token, OLD, now=NOW + 60) == "expired"


def test_the_topic_of_a_plain_id_is_encoded() -> None:
    viewer, _ = read_token(make_token("job:import:42", OLD, NOW, seconds=60), [OLD], NOW)
    assert viewer.topic == "job:import~3A42"


def test_each_secret_is_accepted_until_it_is_taken_away() -> None:
    token = make_token("job:1", OLD, NOW, seconds=60)
    assert read_token(token, [NEW, OLD], NOW)[0] == Viewer("job:1")
    assert code_of(token, NEW) == "unauthenticated"
    assert code_of(token) == "unauthenticated"


def test_a_token_of_the_host_with_the_same_secret_is_none() -> None:
    claims = {"topic": "job:1", "exp": NOW + 60, "sub": "7"}
    for audience in ({}, {"aud": "semantik"}):
        assert code_of(PREFIX + jwt.encode({**claims, **audience}, OLD, "HS256"), OLD)


def test_a_token_is_never_valid_for_less_than_its_time() -> None:
    assert read_token(make_token("job:1", OLD, NOW + 0.9, seconds=1), [OLD], NOW)[1] == NOW + 2


@pytest.mark.parametrize(
    "token",
    [
        PREFIX,
        PREFIX + "x",
        PREFIX + "a.b.c",
        PREFIX + "[" * 10_000,
        PREFIX + jwt.encode({"topic": "job:1"}, OLD, "HS256"),
        PREFIX + jwt.encode({"exp": NOW + 60}, OLD, "HS256"),
        PREFIX + jwt.encode({"topic": "no topic", "exp": NOW + 60}, OLD, "HS256"),
        PREFIX + jwt.encode({"topic": ["job:1"], "exp": NOW + 60}, OLD, "HS256"),
        PREFIX + jwt.encode({"topic": "job:1", "exp": NOW + 60}, "", "none"),
        PREFIX + jwt.encode({"topic": "job:1", "exp": NOW + 60}, OLD * 2, "HS512"),
    ],
)
def test_what_is_no_token_is_refused(token: str) -> None:
    assert code_of(token, OLD) == "unauthenticated"


def test_a_viewer_may_watch_one_topic_only_and_with_an_owner_only_that_owners() -> None:
    anybodys, _ = read_token(make_token("job:1", OLD, NOW, seconds=60), [OLD], NOW)
    adas, _ = read_token(make_token("job:1", OLD, NOW, owner="ada", seconds=60), [OLD], NOW)
    for owner in ("ada", "bob", None):
        assert anybodys.may_watch("job:1", owner, [OLD])
        assert not anybodys.may_watch("job:2", owner, [OLD])
        assert not anybodys.may_watch("user:ada", owner, [OLD])
        assert adas.may_watch("job:1", owner, [NEW, OLD]) == (owner == "ada")
    assert not adas.may_watch("job:2", "ada", [OLD])
    assert "ada" not in adas.user


def test_the_owner_cannot_be_found_out_without_the_secret() -> None:
    made = [make_token("job:1", secret, NOW, owner=7, seconds=60) for secret in (OLD, NEW)]
    digests = [read_token(token, [OLD, NEW], NOW)[0].owner_digest for token in made]
    assert digests[0] != digests[1]


@given(st.text().map("\x1f{}\x1f".format))
def test_no_users_id_is_a_viewers(user: str) -> None:
    with pytest.raises(TopicError):
        plain_id(user)


def test_a_fresh_token_of_the_same_topic_is_the_same_viewers() -> None:
    assert is_same_user(Viewer("job:1", "a").user, Viewer("job:1").user)
    assert not is_same_user(Viewer("job:1").user, Viewer("job:2").user)
    assert not is_same_user(Viewer("job:1").user, "7")
    assert is_same_user("7", "7")


@pytest.mark.parametrize("seconds", [0, -1, MAX_SECONDS + 1, float("nan"), True, "60", None])
def test_a_time_outside_its_range_is_refused(seconds: object) -> None:
    with pytest.raises(InvalidInput):
        make_token("job:1", OLD, NOW, seconds=seconds)  # type: ignore[arg-type]


@pytest.mark.parametrize("topic", ["job", "", 7, None, "job:\n"])
def test_a_token_for_no_topic_is_refused(topic: object) -> None:
    with pytest.raises(TopicError):
        make_token(topic, OLD, NOW, seconds=60)


def test_secrets_are_separated_by_commas_and_a_short_one_is_refused() -> None:
    assert read_secrets(f" {NEW}, {OLD},") == [NEW, OLD]
    with pytest.raises(ConfigError, match="32 bytes"):
        read_secrets(f"{NEW},short")
