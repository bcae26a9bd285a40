"""What the demo refuses: files that are no documents, absurd values, and bursts of logins."""

import json
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from installation import PASSWORD

from semantik_realtime.demo import login, routes
from semantik_realtime.demo.app import create_app
from semantik_realtime.demo.hooks import RealtimeHooks
from semantik_realtime.demo.library import NotInFolder, list_folder, locate
from semantik_realtime.demo.records import Document
from semantik_realtime.demo.settings import DemoSettings

NO_DOCUMENTS = [
    ".env",
    "id_rsa",
    ".git/config",
    ".git/notes.txt",
    "letters/.drafts/anna.txt",
    "letters/.secret.md",
    "report.pdf",
    "key.pem",
    "Makefile",
]
HUGE = 2**63


@pytest.fixture
def lenient(client: TestClient) -> TestClient:
    """Return a logged-in client that gets a 500 as a response, as a browser does."""
    other = TestClient(client.app, raise_server_exceptions=False, headers=client.headers)
    other.cookies = client.cookies
    return other


def put(folder: Path, name: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("password of the zebra")


@pytest.mark.parametrize("name", NO_DOCUMENTS)
def test_a_file_that_is_hidden_or_of_no_text_type_is_neither_listed_nor_indexed(
    client: TestClient, settings: DemoSettings, name: str
) -> None:
    put(settings.folder, name)
    assert name not in [file["path"] for file in client.get("/api/folder").json()["files"]]
    assert client.post("/api/jobs", json={"paths": [name]}).status_code == 404
    # Also not under the name of a link, nor when its row is in the database already.
    (settings.folder / "innocent.txt").symlink_to(settings.folder / name)
    assert client.post("/api/jobs", json={"paths": ["innocent.txt"]}).status_code == 404
    row = Document(user_id=1, origin="folder", name=name, stored=name)
    with pytest.raises(NotInFolder):
        locate(row, settings)


def test_a_file_whose_name_is_not_utf_8_does_not_break_the_listing(
    lenient: TestClient, settings: DemoSettings
) -> None:
    Path(os.fsdecode(bytes(settings.folder) + b"/\xff.txt")).write_text("x")
    assert lenient.get("/api/folder").status_code == 200


def test_the_data_of_the_demo_are_no_documents_when_they_are_inside_the_folder(
    settings: DemoSettings,
) -> None:
    inside = settings.model_copy(update={"data_dir": settings.folder / "data"})
    put(inside.data_dir, "uploads/2/diary.txt")
    put(inside.data_dir, "web.log")
    paths = [file.path for file in list_folder(inside)[0]]
    assert "bread.md" in paths
    assert not [path for path in paths if path.startswith("data/")]
    for name in ("data/uploads/2/diary.txt", "data/web.log"):
        with pytest.raises(NotInFolder):
            locate(Document(user_id=1, origin="folder", name=name, stored=name), inside)


def test_uploads_that_are_no_text_are_refused_with_a_sentence_and_the_others_stored(
    client: TestClient,
) -> None:
    files = [
        ("files", ("report.pdf", b"%PDF-1.7 ...", "application/pdf")),
        ("files", ("photo.txt", b"\x89PNG\x00\x01", "text/plain")),
        ("files", ("wide.txt", "wide".encode("utf-16"), "text/plain")),
        ("files", (".env", b"TOKEN=1", "text/plain")),
    ]
    answer = client.post("/api/documents", files=files)
    assert answer.status_code == 201
    assert [item["name"] for item in answer.json()["documents"]] == ["wide.txt"]
    refused = answer.json()["refused"]
    assert [item["name"] for item in refused] == ["report.pdf", "photo.txt", ".env"]
    assert "PDF" in refused[0]["reason"]
    answer = client.post("/api/documents", files=files[:1])
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("report.pdf: ")


@pytest.mark.parametrize("number", [HUGE, -HUGE - 1, 10**30, 0, -1])
def test_an_id_that_no_row_can_have_is_refused(lenient: TestClient, number: int) -> None:
    assert lenient.delete(f"/api/documents/{number}").status_code in (404, 422)
    assert lenient.post("/api/jobs", json={"documents": [number]}).status_code in (404, 422)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1", "1e400", str(HUGE), "9" * 5000])
def test_a_pause_that_is_no_such_number_is_refused(lenient: TestClient, value: str) -> None:
    body = f'{{"all": true, "pause_seconds": {value}}}'
    answer = lenient.post("/api/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize("value", ["-1", "0", "101", str(HUGE), "9" * 5000, "x"])
def test_a_limit_out_of_range_is_refused(lenient: TestClient, value: str) -> None:
    answer = lenient.get("/api/search", params={"q": "tide", "limit": value})
    assert answer.status_code == 422
    assert isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/login", {"username": "\ud800", "password": "x"}),
        ("/api/login", {"username": "ada", "password": "\ud800"}),
        ("/api/jobs", {"paths": ["\ud800.txt"]}),
        ("/api/jobs", {"paths": ["a" * 5000]}),
        ("/api/jobs", {"paths": ["\0.txt"]}),
    ],
)
def test_a_text_that_cannot_be_encoded_or_is_too_long_is_refused(
    lenient: TestClient, path: str, body: object
) -> None:
    answer = lenient.post(
        path, content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert answer.status_code in (401, 404, 422)


@pytest.mark.parametrize("body", ["[" * 100_000, '{"documents": [' + "[" * 50_000, "{", "\xff"])
def test_a_body_that_cannot_be_parsed_is_refused(lenient: TestClient, body: str) -> None:
    answer = lenient.post("/api/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "+5", "1e3"])
def test_a_content_length_that_is_no_size_is_refused(lenient: TestClient, length: str) -> None:
    answer = lenient.post("/api/jobs", content=b"", headers={"content-length": length})
    assert answer.status_code == 413


@pytest.mark.parametrize("user", [str(HUGE), "9" * 5000, "-1", "x"])
async def test_a_token_and_a_feed_of_a_user_id_that_cannot_be_have_no_user(
    lenient: TestClient, settings: DemoSettings, user: str
) -> None:
    token = login.jwt.encode(
        {"sub": user, "exp": 2**40}, settings.require_secret(), algorithm="HS256"
    )
    lenient.cookies.clear()
    bearer = {"authorization": f"Bearer {token}"}
    assert lenient.get("/api/me", headers=bearer).status_code == 401
    hooks: RealtimeHooks = lenient.app.state.realtime_plugins[0]  # type: ignore[attr-defined]
    assert not await hooks.recall(topic=f"user:{user}")


def test_a_burst_of_logins_gets_no_more_guesses_than_logins_one_after_the_other(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    guesses = []
    all_are_in = threading.Event()

    def slow_check(password: str, hashed: str | None) -> bool:
        guesses.append(password)
        # No request gets "wrong" before all requests of the burst have been counted.
        all_are_in.wait(5)
        return False

    monkeypatch.setattr(routes.login, "is_password", slow_check)
    answers: list[int] = []

    def guess(number: int) -> None:
        body = {"username": "ada", "password": f"guess {number}"}
        answers.append(client.post("/api/login", json=body).status_code)
        if answers.count(429) == 15:
            all_are_in.set()

    with ThreadPoolExecutor(20) as burst:
        list(burst.map(guess, range(20)))
    assert len(guesses) == 5
    assert sorted(answers) == [401] * 5 + [429] * 15


def test_logins_are_admitted_atomically() -> None:
    attempts = login.LoginAttempts(limit=5)
    start = threading.Barrier(8)

    def admit(_: int) -> list[float]:
        start.wait()
        return [attempts.admit(("ada", "::1"), 100.0) for _ in range(50)]

    with ThreadPoolExecutor(8) as threads:
        waits = [wait for several in threads.map(admit, range(8)) for wait in several]
    assert waits.count(0.0) == 5


def test_a_right_password_gives_the_attempts_back(client: TestClient) -> None:
    for _ in range(4):
        body = {"username": "ada", "password": PASSWORD}
        for _ in range(3):
            assert client.post("/api/login", json=body | {"password": "no"}).status_code == 401
        assert client.post("/api/login", json=body).status_code == 200


def test_what_the_demo_stores_can_be_read_by_its_own_user_alone(
    client: TestClient, settings: DemoSettings
) -> None:
    client.post("/api/documents", files={"file": ("fruit.txt", b"apple")})
    client.get("/api/search", params={"q": "apple"})
    stored = [settings.data_dir, *settings.data_dir.rglob("*")]
    kept = {path.suffix for path in stored}
    assert {".sqlite3", ".sqlite3-wal", ".txt"} <= kept
    for path in stored:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_the_folder_of_documents_keeps_its_rights(settings: DemoSettings) -> None:
    settings.folder.chmod(0o755)
    create_app(settings).state.host.sessions.kw["bind"].dispose()
    assert stat.S_IMODE(settings.folder.stat().st_mode) == 0o755
