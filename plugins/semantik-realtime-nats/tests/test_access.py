"""Ways to get in: TLS, an nkey, and no more rights than the README asks for."""

from __future__ import annotations

import datetime
import ipaddress
import secrets
from collections.abc import Callable
from pathlib import Path

import nkeys
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from semantik_realtime.core.event import Outcome
from semantik_realtime.errors import BackendError
from semantik_realtime.testing.contract import Author, Recorder
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


def write_certificate(directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    certificate_path, key_path = directory / "cert.pem", directory / "key.pem"
    certificate_path.write_bytes(certificate.public_bytes(pem))
    key_path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_path, key_path


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


async def test_the_rights_that_the_readme_lists_are_enough(
    start_server: Start, make_backend: Make
) -> None:
    block = README.read_text().partition("publish:")[2].partition("```")[0]
    publish, subscribe = (part.split() for part in block.split("subscribe:"))
    assert len(publish) == 6
    config = f"""authorization {{ users: [ {{ user: u, password: p, permissions: {{
      publish: [{", ".join(f'"{one}"' for one in publish)}]
      subscribe: [{", ".join(f'"{one}"' for one in subscribe)}]
    }} }} ] }}"""
    server = start_server(config=config)
    assert await works(make_backend(server.url.replace("://", "://u:p@")))
