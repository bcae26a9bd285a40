"""TLS, nkeys, credentials files, and a user with only the permissions that the README lists."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nkeys
import pytest
from semantik_realtime.backends.guard import GuardedBackend
from semantik_realtime.core.event import Outcome
from semantik_realtime.errors import BackendError, BackendRefused, ConfigError, TopicRefused
from semantik_realtime.testing.certificate import write_certificate
from semantik_realtime.testing.contract import Author, Recorder, until
from semantik_realtime.testing.servers import NatsServer

from semantik_realtime_nats.backend import NatsBackend

Start = Callable[..., NatsServer]
Make = Callable[..., NatsBackend]
README = Path(__file__).parents[1] / "README.md"


async def works(backend: NatsBackend) -> bool:
    """Use everything that a backend does; return True if the events were appended."""
    topic, sink, author = f"job:{secrets.token_hex(6)}", Recorder(), Author()
    await backend.open()
    await backend.subscribe(topic, sink)
    receipts = backend.publish([author.draft(topic, state={"n": n}) for n in range(100)])
    await sink.wait_for_events(100)
    assert len((await backend.snapshot(topic, None, 100)).events) == 100
    assert backend.lease(topic, "holder", 1, 60.0)
    assert not backend.hold("holder", {"1": b"one"}, [], 60.0)
    assert not backend.overdue(60.0)
    assert backend.delete(topic)
    return {receipt.outcome for receipt in receipts} == {Outcome.APPENDED}


async def test_tls_works_with_the_ca_certificate_and_fails_without_it(
    start_server: Start, make_backend: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = write_certificate(tmp_path)
    server = start_server(config=f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}')
    url = server.url.replace("nats://", "tls://")
    with pytest.raises(BackendError, match="certificate"):
        make_backend(url).publish([Author().draft("job:1")])
    monkeypatch.setenv("SEMANTIK_REALTIME_NATS_TLS_CA", str(certificate))
    assert await works(make_backend(url))


async def test_a_server_that_requires_a_client_certificate_gets_ours(
    start_server: Start, make_backend: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = write_certificate(tmp_path)
    files = f'cert_file: "{certificate}", key_file: "{key}", ca_file: "{certificate}"'
    url = start_server(config=f"tls {{ {files}, verify: true }}").url.replace("nats://", "tls://")
    monkeypatch.setenv("SEMANTIK_REALTIME_NATS_TLS_CA", str(certificate))
    for _ in range(3):
        with pytest.raises(BackendRefused, match=r"requires a certificate .* set SEMANTIK"):
            make_backend(url).publish([Author().draft("job:1")])
    monkeypatch.setenv("SEMANTIK_REALTIME_NATS_TLS_CERT", str(certificate))
    with pytest.raises(ConfigError, match="SEMANTIK_REALTIME_NATS_TLS"):
        make_backend(url)
    monkeypatch.setenv("SEMANTIK_REALTIME_NATS_TLS_KEY", str(key))
    assert await works(make_backend(url))


async def test_a_client_with_the_nkey_is_let_in_and_one_without_is_refused(
    start_server: Start, make_backend: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    server = start_server(config=f"authorization {{ users: [ {{ nkey: {public} }} ] }}")
    with pytest.raises(BackendError, match="credentials"):
        make_backend(server.url).publish([Author().draft("job:1")])
    path = tmp_path / "seed"
    path.write_bytes(seed)
    monkeypatch.setenv("SEMANTIK_REALTIME_NATS_NKEY_SEED", str(path))
    assert await works(make_backend(server.url))


class Identity:
    """An operator, an account or a user: a key, and a JWT that its issuer has signed."""

    def __init__(self, kind: str, issuer: Identity | None = None, **claims: Any) -> None:
        prefix = getattr(nkeys, f"PREFIX_BYTE_{kind.upper()}")
        self.seed = nkeys.encode_seed(secrets.token_bytes(32), prefix)
        self._key = nkeys.from_seed(bytearray(self.seed))
        self.name = self._key.public_key.decode()
        signer = issuer or self
        claim = {
            "jti": secrets.token_hex(16),
            "iat": int(time.time()),
            "iss": signer.name,
            "sub": self.name,
            "nats": {"type": kind, "version": 2, **claims},
        }
        signed = f"{_encode_claims({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_encode_claims(claim)}"
        self.jwt = f"{signed}.{_base64(signer._key.sign(signed.encode()))}"

    def write_credentials(self, path: Path) -> None:
        """Write a .creds file in the format of `nsc`."""
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{self.jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{self.seed.decode()}\n"
            "------END USER NKEY SEED------\n"
        )


def _encode_claims(claims: dict[str, Any]) -> str:
    return _base64(json.dumps(claims).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


USER = dict.fromkeys(("subs", "data", "payload"), -1)
ACCOUNT = USER | dict.fromkeys(("imports", "exports", "conn", "leaf"), -1)
ON_DISK = ACCOUNT | dict.fromkeys(("disk_storage", "streams", "consumer"), -1)


async def test_a_credentials_file_is_accepted_only_for_a_known_account_with_jetstream(
    start_server: Start, make_backend: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = Identity("operator")
    system = Identity("account", operator, limits=ACCOUNT)
    account = Identity("account", operator, limits=ON_DISK)
    without_jetstream = Identity("account", operator, limits=ACCOUNT)
    known = "\n".join(f"{one.name}: {one.jwt}" for one in (system, account, without_jetstream))
    server = start_server(
        config=f"""operator: {operator.jwt}
        system_account: {system.name}
        resolver: MEMORY
        resolver_preload: {{ {known} }}"""
    )
    with pytest.raises(BackendRefused, match="credentials"):
        make_backend(server.url).publish([Author().draft("job:1")])

    path = tmp_path / "user.creds"
    monkeypatch.setenv("SEMANTIK_REALTIME_NATS_CREDENTIALS", str(path))
    Identity("user", account, **USER).write_credentials(path)
    assert await works(make_backend(server.url))
    Identity("user", Identity("account", operator), **USER).write_credentials(path)
    with pytest.raises(BackendRefused, match="credentials"):
        make_backend(server.url).publish([Author().draft("job:1")])
    Identity("user", without_jetstream, **USER).write_credentials(path)
    with pytest.raises(BackendRefused, match="no JetStream for this account"):
        make_backend(server.url).publish([Author().draft("job:1")])


def allow(publish: list[str], subscribe: list[str]) -> str:
    """Return a server configuration with one user who has only these permissions."""
    return f"""authorization {{ users: [ {{ user: u, password: p, permissions: {{
      publish: {json.dumps(publish)}
      subscribe: {json.dumps(subscribe)}
    }} }} ] }}"""


def listed(heading: str) -> tuple[list[str], list[str]]:
    """Return the permissions that the README lists after ``heading``."""
    block = README.read_text().partition(f"\n{heading}")[2].partition("```")[2].partition("```")[0]
    publish, subscribe = block.partition("publish:")[2].split("subscribe:")
    return publish.split(), subscribe.split()


async def works_for_a_worker(backend: NatsBackend) -> bool:
    """Use everything that a worker does; return True if the events were appended."""
    topic, sink, author = f"job:{secrets.token_hex(6)}", Recorder(), Author()
    assert not backend.hold("worker", {"1": b"one"}, [], 60.0)
    assert backend.claim(topic, "1", "token", None) == 1
    # Enough for a checkpoint, and for the log to be trimmed.
    receipts = []
    for _ in range(3):
        receipts += backend.publish([author.draft(topic, state={"n": n}) for n in range(100)])
    await backend.open()
    await backend.subscribe(topic, sink)
    backend.publish([author.draft(topic)])
    await sink.wait_for_events(1)
    assert (await backend.snapshot(topic, None, 0)).cursor is not None
    assert backend.hold("worker", {}, ["1"], 60.0)
    return {receipt.outcome for receipt in receipts} == {Outcome.APPENDED}


async def test_the_permissions_that_the_readme_lists_are_enough(
    start_server: Start, make_backend: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "semantik_realtime_nats")
    for heading, use, count in (("Web servers", works, 7), ("Workers", works_for_a_worker, 6)):
        publish, subscribe = listed(heading)
        assert len(publish) == count
        url = start_server(config=allow(publish, subscribe)).url.replace("://", "://u:p@")
        assert await use(make_backend(url, retention_events=128))
    assert caplog.messages == []


RIGHTS = {
    "semantik.topic.>": "semantik.topic.",
    "semantik.held.*": "semantik.held.",
    "$JS.API.STREAM.INFO.semantik": "$js.api.stream.info.semantik",
    "$JS.API.STREAM.CREATE.semantik": "$js.api.stream.create.semantik",
    "$JS.API.DIRECT.GET.semantik": "$js.api.direct.get.semantik",
    "_INBOX.>": "_inbox.",
}


@pytest.mark.parametrize("missing", RIGHTS)
async def test_a_worker_without_a_right_says_so_at_once(
    start_server: Start, make_backend: Make, missing: str
) -> None:
    publish, subscribe = (
        [subject for subject in subjects if subject != missing] for subjects in listed("Workers")
    )
    url = start_server(config=allow(publish, subscribe)).url.replace("://", "://u:p@")
    began = time.monotonic()
    with pytest.raises(BackendRefused, match="permission") as caught:
        await works_for_a_worker(make_backend(url, retention_events=64))
    assert RIGHTS[missing] in str(caught.value).lower()
    assert time.monotonic() - began < 4


async def test_a_refused_subscription_says_which_permission_to_grant(
    start_server: Start, make_backend: Make
) -> None:
    server = start_server(config=allow([">"], ["_INBOX.>", "semantik.live.user:7"]))
    backend, sink = make_backend(server.url.replace("://", "://u:p@")), Recorder()
    await backend.open()
    for _ in range(2):
        with pytest.raises(BackendRefused, match=r"permission to subscribe to semantik\.live\.>"):
            await backend.subscribe("job:1", Recorder())
    await backend.subscribe("user:7", sink)
    backend.publish([Author().draft("user:7")])
    await sink.wait_for_events(1)


async def test_a_refused_topic_is_no_outage_for_the_others(
    start_server: Start, make_backend: Make
) -> None:
    denied = '{ allow: ["_INBOX.>", "semantik.live.>"], deny: ["semantik.live.job:1"] }'
    config = allow([">"], []).replace("subscribe: []", f"subscribe: {denied}")
    assert denied in config
    server = start_server(config=config)
    backend = make_backend(server.url.replace("://", "://u:p@"))
    guard, sink = GuardedBackend(backend, 5.0), Recorder()
    await guard.open()
    with pytest.raises(TopicRefused, match=r"may not subscribe to semantik\.live\.job:1"):
        await guard.subscribe("job:1", Recorder())
    assert not guard.is_away
    await guard.subscribe("user:7", sink)
    guard.publish([Author().draft("user:7")])
    await sink.wait_for_events(1)


async def test_a_withdrawn_permission_to_subscribe_is_an_outage_until_it_is_granted_again(
    start_server: Start, make_backend: Make
) -> None:
    permissions = allow([">"], ["_INBOX.>", "semantik.live.>"])
    server = start_server(config=permissions)
    backend, sink = make_backend(server.url.replace("://", "://u:p@")), Recorder()
    await backend.open()
    await backend.subscribe("job:1", sink)

    def configure(old: str, new: str) -> None:
        path = server.directory / "conf"
        path.write_text(path.read_text().replace(old, new))
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)

    async def refusal() -> str:
        try:
            await backend.tops(["job:1"])
        except BackendError as error:
            return str(error)
        return ""

    configure('"semantik.live.>"', '"other.>"')
    async with asyncio.timeout(10):
        while "grant the permission to subscribe" not in await refusal():
            await asyncio.sleep(0.02)
    configure('"other.>"', '"semantik.live.>"')
    await until(lambda: sink.interruptions)
    backend.publish([Author().draft("job:1")])
    await sink.wait_for_events(1)
