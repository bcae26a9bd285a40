"""No password is shown, whatever characters it has and however wrong the URL is."""

from __future__ import annotations

import string
import time

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.backends.redis.backend import RedisBackend
from semantik_realtime.client import watch
from semantik_realtime.config import load_settings
from semantik_realtime.errors import ConfigError, InvalidInput
from semantik_realtime.urls import HIDDEN, find_fault, mask_text, mask_urls

# The beginning and the end of every password: the text between them is arbitrary, and neither may
# be in what is shown, so that no half of a password is either.
HEAD, TAIL = "xBEGINx", "xENDx"
DELIMITERS = [
    *"@:/?#,[]%&= \t\n",
    "://",
    ",nats://",
    ", redis://",
    "@h,nats://",
    "?a=",
    ",tls://u:",
]
PASSWORDS = st.builds(
    lambda parts: HEAD + "".join(parts) + TAIL,
    st.lists(st.one_of(st.sampled_from(DELIMITERS), st.text(max_size=5))),
)
TEMPLATES = [
    "redis://:{}@host:6379/0",
    "rediss://user:{}@[::1]:6379/0?client_name=host",
    "redis://{}@host",
    "redis://host?password={}",
    "redis://host/0?db=1&password={}#fragment",
    "redis://host#{}",
    "redis://user:{}",
    "redis://:{}",
    "nats://u:{}@host1:4222,nats://host2:4222",
    "nats://host1:4222,nats://u:{}@host2:4222",
    "nats://u:p@host1,tls://u:{}@host2/",
    "nats://u:{0}@host1, nats://u:{0}@host2",
    "redis+sentinel://u:{}@host1:26379,host2/name/0?sentinel_password={}",
    "rediss+cluster://u:{}@host1:7000,host2",
    "sentinel://u:{}@host1;sentinel://host2",
    "ws://u:{}@host/realtime/ws?token={}",
    "unix://user:{}@/host/run/redis.sock?db=0",
    "user:{}@host",
    ":{}@host",
    "{}",
    "{}:u:p@host",
]


@pytest.mark.parametrize("template", TEMPLATES)
@given(password=PASSWORDS)
def test_no_part_of_a_password_is_shown(template: str, password: str) -> None:
    if "host" not in template:
        # Without a host behind it, what comes after an "@" in the password is a host.
        assume("@" not in password)
    if template.startswith("{}"):
        # And what comes before such a sign is a scheme.
        assume("://" not in password)
    shown = mask_urls(template.format(password, password))
    assert HEAD not in shown
    assert TAIL not in shown


@given(text=st.text())
def test_any_text_can_be_masked_and_what_is_shown_can_be_masked_again(text: str) -> None:
    assert mask_urls(mask_urls(text)).count(HIDDEN) >= mask_urls(text).count(HIDDEN) - 1
    assert isinstance(mask_text(text), str)


@given(password=st.text(string.ascii_letters + string.digits + "-._~!$&'()*+;=:%", min_size=1))
@example("secret")
def test_of_a_wellformed_url_everything_but_the_password_is_shown(password: str) -> None:
    assert mask_urls(f"redis://:{password}@cache-1:6379/0") == "redis://***@cache-1:6379/0"
    assert mask_urls(f"nats://u:{password}@a:1,tls://u:{password}@[::1]:2") == (
        "nats://***@a:1,tls://***@[::1]:2"
    )


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:6379/0",
        "wss://example.org/realtime/ws",
        "sqlite:////var/lib/app/realtime.db",
        "redis://[fe80::1]:6379",
    ],
)
def test_a_url_without_credentials_is_shown_whole(url: str) -> None:
    assert mask_urls(url) == mask_text(url) == url
    assert find_fault(url) is None


@given(password=PASSWORDS)
def test_in_a_text_a_url_is_masked_up_to_the_next_white_space(password: str) -> None:
    assume(not any(character.isspace() for character in password))
    shown = mask_text(f"no answer from redis://:{password}@host:6379 in 5 s")
    assert HEAD not in shown
    assert TAIL not in shown
    assert shown.startswith("no answer from redis://")
    assert shown.endswith(" in 5 s")


@pytest.mark.parametrize("character", ["a", "1", "-", "a1"])
def test_a_long_text_without_a_url_is_searched_in_no_time(character: str) -> None:
    # The text of a stranger: a host's exceptions may quote a token.
    began_at = time.process_time()
    text = character * 60_000
    assert mask_text(text) == text
    assert HEAD not in mask_text(f"{text}redis://:{HEAD}@host")
    assert mask_text(f"12.redis://:{HEAD}@host") == f"12.redis://{HIDDEN}@host"
    assert time.process_time() - began_at < 3


def test_a_list_of_urls_without_credentials_is_shown_whole() -> None:
    urls = "nats://one:4222,tls://two:4222"
    assert mask_urls(urls) == urls


@pytest.mark.parametrize("template", [one for one in TEMPLATES if one.startswith("redis")])
@settings(max_examples=20)
@given(password=PASSWORDS)
def test_the_error_of_a_wrong_url_shows_no_part_of_a_password(template: str, password: str) -> None:
    error = error_of(template.format(password, password))
    assert HEAD not in str(error)
    assert TAIL not in str(error)
    # A traceback would show those too.
    while error is not None:
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        assert HEAD not in str(error)
        assert TAIL not in str(error)


def error_of(url: str) -> BaseException | None:
    """Return the error that the redis backend raises for a URL, if it does."""
    try:
        RedisBackend(load_settings(url=url))
    except ConfigError as error:
        return error
    return None


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:xENDx@host/realtime/ws",
        "ws://u:xENDx/p@host/realtime/ws",
        "ws://:xENDx℀@host",
        "ws://u:[xENDx]@host",
        "ws://u:p#xENDx@host",
    ],
)
async def test_the_error_of_a_wrong_websocket_url_shows_no_part_of_a_password(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await anext(watch(url, "job:1"))
    assert TAIL not in str(caught.value)


def test_a_url_given_as_the_backends_name_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match="no backend") as caught:
        load_backend(load_settings(backend="redis://:xENDx@host"))
    assert TAIL not in str(caught.value)
