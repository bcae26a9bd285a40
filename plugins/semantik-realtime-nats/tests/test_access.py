"""Ways to get in: TLS, an nkey, credentials, and no more rights than the README asks for."""

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
from semantik_realtime.core.event import Outcome
from semantik_realtime.errors import BackendError, BackendRefused, ConfigError
from semantik_realtime.testing.certificate import write_certificate
from semantik_realtime.testing.contract import Author, Recorder, until
from semantik_realtime.testing.servers import NatsServer

from semantik_realtime_nats.backend import NatsBackend

Start = Callable[..., NatsServer]
Make = Callable[..., NatsBackend]
README = Path(__file__).parents[1] / "README.md"


async def works(backend: NatsBackend) -> bool:
    """Whether everything that a backend does can be done."""
    topic, sink, author = f"job:{secrets.token_hex(6)}", Recorder(), Author()
    await backend.open()
    await backend.subscribe(topic, sink)
    receipts = backend.publish([author.draft(topic, state={"n": n}) for n in range(100)])
    await sink.heard(100)
    assert len((await backend.snapshot(topic, None, 100)).events) == 100
    assert backend.lease(topic, "holder", 1, 60.0)
    assert backend.delete(topic)
    return {receipt.outcome for receipt in receipts} == {Outcome.APPENDED}


async def test_tls_works_with_the_authority_and_fails_without_it(
    start_server: Start, make_backend: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = write_certificate(tmp_path)
    server = start_server(config=f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}')
    url = server.url.replace("nats://", "tls://")
    with pytest.raises(BackendError, match="certificate"):
        make_backend(url).publish([Author().draft("job:1")])
    monkeypatch.setenv("SEMANTIK_REALTIME_NATS_TLS_CA", str(certificate))
    assert await works(make_backend(url))


async def test_a_server_that_wants_a_certificate_gets_ours(
    start_server: Start, make_backend: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = write_certificate(tmp_path)
    files = f'cert_file: "{certificate}", key_file: "{key}", ca_file: "{certificate}"'
    url = start_server(config=f"tls {{ {files}, verify: true }}").url.replace("nats://", "tls://")
    monkeypatch.setenv("SEMANTIK_REALTIME_NATS_TLS_CA", str(certificate))
    for _ in range(3):
        with pytest.raises(BackendRefused, match=r"wants a certificate .* set SEMANTIK"):
            make_backend(url).publish([Author().draft("job:1")])
    monkeypatch.setenv("SEMANTIK_REALTIME_NATS_TLS_CERT", str(certificate))
    with pytest.raises(ConfigError, match="SEMANTIK_REALTIME_NATS_TLS"):
        make_backend(url)
    monkeypatch.setenv("SEMANTIK_REALTIME_NATS_TLS_KEY", str(key))
    assert await works(make_backend(url))


async def test_an_nkey_opens_the_door(
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


class Party:
    """An operator, an account or a user: a key, and a JWT that its issuer signed."""

    def __init__(self, kind: str, issuer: Party | None = None, **claims: Any) -> None:
        prefix = getattr(nkeys, f"PREFIX_BYTE_{kind.upper()}")
        self.seed = nkeys.encode_seed(secrets.token_bytes(32), prefix)
        self._key = nkeys.from_seed(bytearray(self.seed))
        self.name = self._key.public_key.decode()
        by = issuer or self
        claim = {
            "jti": secrets.token_hex(16),
            "iat": int(time.time()),
            "iss": by.name,
            "sub": self.name,
            "nats": {"type": kind, "version": 2, **claims},
        }
        signed = f"{_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_part(claim)}"
        self.jwt = f"{signed}.{_text(by._key.sign(signed.encode()))}"

    def write_credentials(self, path: Path) -> None:
        """A .creds file, as `nsc` writes it."""
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{self.jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{self.seed.decode()}\n"
            "------END USER NKEY SEED------\n"
        )


def _part(claims: dict[str, Any]) -> str:
    return _text(json.dumps(claims).encode())


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


USER = dict.fromkeys(("subs", "data", "payload"), -1)
ACCOUNT = USER | dict.fromkeys(("imports", "exports", "conn", "leaf"), -1)
ON_DISK = ACCOUNT | dict.fromkeys(("disk_storage", "streams", "consumer"), -1)


async def test_credentials_of_a_user_of_an_account_open_the_door(
    start_server: Start, make_backend: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = Party("operator")
    system = Party("account", operator, limits=ACCOUNT)
    account = Party("account", operator, limits=ON_DISK)
    poor = Party("account", operator, limits=ACCOUNT)
    known = "\n".join(f"{one.name}: {one.jwt}" for one in (system, account, poor))
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
    Party("user", account, **USER).write_credentials(path)
    assert await works(make_backend(server.url))
    Party("user", Party("account", operator), **USER).write_credentials(path)
    with pytest.raises(BackendRefused, match="credentials"):
        make_backend(server.url).publish([Author().draft("job:1")])
    Party("user", poor, **USER).write_credentials(path)
    with pytest.raises(BackendRefused, match="no JetStream for this account"):
        make_backend(server.url).publish([Author().draft("job:1")])


def allow(publish: list[str], subscribe: list[str]) -> str:
    """The configuration of a server with a user who may do this."""
    return f"""authorization {{ users: [ {{ user: u, password: p, permissions: {{
      publish: {json.dumps(publish)}
      subscribe: {json.dumps(subscribe)}
    }} }} ] }}"""


async def test_the_rights_that_the_readme_lists_are_enough(
    start_server: Start, make_backend: Make
) -> None:
    block = README.read_text().partition("publish:")[2].partition("```")[0]
    publish, subscribe = (part.split() for part in block.split("subscribe:"))
    assert len(publish) == 6
    server = start_server(config=allow(publish, subscribe))
    assert await works(make_backend(server.url.replace("://", "://u:p@")))


async def test_who_may_not_subscribe_is_told_the_right_to_give(
    start_server: Start, make_backend: Make
) -> None:
    server = start_server(config=allow([">"], ["_INBOX.>", "semantik.live.user:7"]))
    backend, sink = make_backend(server.url.replace("://", "://u:p@")), Recorder()
    await backend.open()
    for _ in range(2):
        with pytest.raises(BackendRefused, match=r"right to subscribe to semantik\.live\.>"):
            await backend.subscribe("job:1", Recorder())
    await backend.subscribe("user:7", sink)
    backend.publish([Author().draft("user:7")])
    await sink.heard(1)


async def test_a_right_to_subscribe_that_is_taken_back_is_an_outage_until_it_is_given(
    start_server: Start, make_backend: Make
) -> None:
    right = allow([">"], ["_INBOX.>", "semantik.live.>"])
    server = start_server(config=right)
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
        while "give the right to subscribe" not in await refusal():
            await asyncio.sleep(0.02)
    configure('"other.>"', '"semantik.live.>"')
    await until(lambda: sink.interruptions)
    backend.publish([Author().draft("job:1")])
    await sink.heard(1)
