"""A host without plugins, on SQLite in a new folder. No server is running."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from installation import PASSWORD, LogIn
from pydantic import SecretStr

from semantik_realtime.demo.app import create_app
from semantik_realtime.demo.login import hash_password
from semantik_realtime.demo.records import Sessions, User
from semantik_realtime.demo.settings import DemoSettings


@pytest.fixture
def settings(tmp_path: Path) -> DemoSettings:
    documents = tmp_path / "documents"
    (documents / "letters").mkdir(parents=True)
    (documents / "bread.md").write_text("# Bread\n\nKnead the dough, let it rise for an hour.")
    (documents / "letters" / "anna.txt").write_text("Dear Anna,\n\nthe naïve café is closed.")
    (documents / "page.html").write_text(
        "<title>Tides</title><script>var hidden = 'moonbeam'</script><p>The <b>tide</b> rises.</p>"
    )
    (documents / "photo.txt").write_bytes(b"\x89PNG\x00\x01")
    (documents / "latin.txt").write_bytes("Käse".encode("latin-1"))
    (documents / ".hidden.txt").write_text("secret")
    return DemoSettings(
        data_dir=tmp_path / "data",
        documents_dir=documents,
        # No broker listens on port 1: these tests must not need one.
        redis_url="redis://127.0.0.1:1/0",
        jwt_secret=SecretStr("k" * 32),
        user="ada",
        password=SecretStr(PASSWORD),
        plugins=False,
    )


@pytest.fixture
def log_in(settings: DemoSettings) -> Iterator[LogIn]:
    """Return a logged-in client of a user; an unknown user is created."""
    app = create_app(settings)
    sessions: Sessions = app.state.host.sessions
    clients = []

    def start(name: str) -> TestClient:
        if name != settings.user:
            with sessions.begin() as session:
                session.add(User(name=name, password=hash_password(PASSWORD)))
        client = TestClient(app, headers={"x-requested-with": "tests"})
        answer = client.post("/api/login", json={"username": name, "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.close()
    sessions.kw["bind"].dispose()


@pytest.fixture
def client(log_in: LogIn, settings: DemoSettings) -> TestClient:
    return log_in(settings.user)
