"""Choosing, uploading, indexing and searching documents."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from semantik_realtime.demo.indexing import Cancelled, run_job
from semantik_realtime.demo.library import NotInFolder, resolve_inside
from semantik_realtime.demo.records import Document, Job
from semantik_realtime.demo.routes import Host
from semantik_realtime.demo.search import SearchIndex
from semantik_realtime.demo.settings import DemoSettings
from semantik_realtime.demo.texts import Unreadable, read_text, split


def host_of(client: TestClient) -> Host:
    host: Host = client.app.state.host  # type: ignore[attr-defined]
    return host


def index(client: TestClient, **columns: object) -> str:
    """Create a job of all documents, also those of the folder, and run it in this process."""
    from semantik_realtime.demo import library

    host = host_of(client)
    user_id = client.get("/api/me").json()["user"]["id"]
    with host.sessions.begin() as session:
        files, _ = library.list_folder(host.settings)
        library.choose(session, user_id, host.settings, [file.path for file in files])
        documents = session.query(Document).where(Document.user_id == user_id)
        numbers = [document.id for document in documents.order_by(Document.name)]
        job = Job(id="job-1", user_id=user_id, label="all", document_ids=numbers, **columns)
        session.add(job)
    run_job(job.id, host.settings, host.sessions)
    return job.id


def titles(client: TestClient, query: str) -> list[str]:
    results = client.get("/api/search", params={"q": query}).json()["results"]
    return [result["title"] for result in results]


def test_the_folder_lists_text_files_by_name_and_no_hidden_ones(client: TestClient) -> None:
    listing = client.get("/api/folder").json()
    paths = [file["path"] for file in listing["files"]]
    assert paths == ["bread.md", "latin.txt", "letters/anna.txt", "page.html", "photo.txt"]
    assert listing["truncated"] is False


def test_virtual_environments_and_node_modules_have_no_documents(
    client: TestClient, settings: DemoSettings
) -> None:
    listed = client.get("/api/folder").json()
    environment, modules = settings.folder / "env", settings.folder / "site" / "node_modules"
    paths = [environment / "lib" / "LICENSE.txt", modules / "left" / "README.md"]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_text("of somebody else")
    (environment / "pyvenv.cfg").touch()
    assert client.get("/api/folder").json() == listed
    for path in paths:
        relative = path.relative_to(settings.folder).as_posix()
        assert client.post("/api/jobs", json={"paths": [relative]}).status_code == 404


@pytest.mark.parametrize(
    "path", ["../outside.txt", "/etc/hostname", "letters/../../outside.txt", "link.txt", "a\0b", ""]
)
def test_a_path_that_leads_out_of_the_folder_is_refused(
    client: TestClient, settings: DemoSettings, path: str
) -> None:
    outside = settings.folder.parent / "outside.txt"
    outside.write_text("not yours")
    (settings.folder / "link.txt").symlink_to(outside)
    assert client.post("/api/jobs", json={"paths": [path]}).status_code == 404
    with pytest.raises(NotInFolder):
        resolve_inside(settings.folder, path)


def test_a_link_that_replaces_a_document_later_is_not_followed(
    client: TestClient, settings: DemoSettings
) -> None:
    outside = settings.folder.parent / "outside.txt"
    outside.write_text("zebra crossing")
    index(client)
    host = host_of(client)
    with host.sessions.begin() as session:
        job = session.get_one(Job, "job-1")
        session.add(Job(id="job-2", user_id=job.user_id, label="x", document_ids=job.document_ids))
    (settings.folder / "bread.md").unlink()
    (settings.folder / "bread.md").symlink_to(outside)
    run_job("job-2", settings, host.sessions)
    assert titles(client, "zebra") == []


def test_a_job_indexes_what_it_can_read_and_counts_the_rest_as_failed(client: TestClient) -> None:
    job = client.get(f"/api/jobs/{index(client)}").json()
    assert job["state"]["status"] == "completed"
    assert job["state"]["attempt"] == 1
    assert job["state"]["progress"] == {"current": 5, "total": 5, "unit": "files"}
    assert job["state"]["fields"] == {
        "total_files": 5,
        "processed_files": 3,
        "failed_files": 2,
        "chunks": 3,
        "current_file": None,
    }
    assert job["failures"] == [
        {"file": "latin.txt", "reason": "not UTF-8 text (byte 1)"},
        {"file": "photo.txt", "reason": "not a text file"},
    ]
    statuses = {
        document["name"]: document["status"]
        for document in client.get("/api/documents").json()["documents"]
    }
    assert (statuses["bread.md"], statuses["photo.txt"]) == ("indexed", "failed")


def test_a_search_marks_the_hits_and_needs_every_word(client: TestClient) -> None:
    index(client)
    [result] = client.get("/api/search", params={"q": "dough kneading"}).json()["results"]
    assert result["title"] == "bread.md"
    hits = [piece["text"] for piece in result["snippet"] if piece["hit"]]
    assert hits == ["Knead", "dough"]
    assert "".join(piece["text"] for piece in result["snippet"]).startswith("# Bread")
    assert titles(client, "dough tide") == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("naive cafe", ["letters/anna.txt"]),
        ("rise", ["bread.md", "page.html"]),
        ("tid", ["page.html"]),
        ("moonbeam", []),
        ('" OR NEAR(', []),
        ("", []),
    ],
)
def test_searches_find_words_prefixes_and_no_hidden_text(
    client: TestClient, query: str, found: list[str]
) -> None:
    index(client)
    assert sorted(titles(client, query)) == found


def test_an_upload_is_stored_under_a_generated_name_and_found_under_its_own(
    client: TestClient, settings: DemoSettings
) -> None:
    files = [
        ("files", ("../../notes.txt", b"The quick brown fox", "text/plain")),
        ("files", ("data.csv", b"city,people\nBern,134000\n", "text/csv")),
    ]
    answer = client.post("/api/documents", files=files)
    assert answer.status_code == 201
    assert [item["name"] for item in answer.json()["documents"]] == ["notes.txt", "data.csv"]
    kept = [path for path in settings.data_dir.rglob("*") if path.suffix in {".txt", ".csv"}]
    assert [path.parent.parent.name for path in kept] == ["uploads", "uploads"]
    index(client)
    assert titles(client, "fox") == ["notes.txt"]
    assert titles(client, "Bern") == ["data.csv"]


def test_a_second_upload_of_a_name_replaces_the_first(client: TestClient) -> None:
    for content in (b"first apple", b"second pear"):
        answer = client.post("/api/documents", files={"file": ("fruit.txt", content)})
        assert answer.status_code == 201
    assert len(client.get("/api/documents").json()["documents"]) == 1
    index(client)
    assert (titles(client, "pear"), titles(client, "apple")) == (["fruit.txt"], [])


def test_an_upload_over_the_limit_is_refused_before_it_is_read(
    client: TestClient, settings: DemoSettings
) -> None:
    too_much = {"content-length": str(settings.max_upload_bytes + 1)}
    assert client.post("/api/documents", content=b"", headers=too_much).status_code == 413
    endless = client.post("/api/documents", content=iter([b"x"]))
    assert endless.status_code == 411


def test_a_deleted_document_is_no_longer_found(client: TestClient) -> None:
    client.post("/api/documents", files={"file": ("fruit.txt", b"apple")})
    index(client)
    [number] = [
        document["id"]
        for document in client.get("/api/documents").json()["documents"]
        if document["name"] == "fruit.txt"
    ]
    assert client.delete(f"/api/documents/{number}").status_code == 204
    assert titles(client, "apple") == []
    assert client.delete(f"/api/documents/{number}").status_code == 404


def test_a_cancelled_job_stops_and_has_the_status_cancelled(client: TestClient) -> None:
    with pytest.raises(Cancelled):
        index(client, cancel_requested=True)
    job = client.get("/api/jobs/job-1").json()
    assert job["state"]["status"] == "cancelled"
    assert job["state"]["fields"]["processed_files"] == 0


def test_a_job_whose_row_is_deleted_does_nothing(
    client: TestClient, settings: DemoSettings
) -> None:
    with pytest.raises(Cancelled):
        run_job("deleted", settings, host_of(client).sessions)


def test_a_job_that_raises_has_its_error_in_its_state(
    client: TestClient, settings: DemoSettings
) -> None:
    settings.search_index(1).mkdir(parents=True)
    with pytest.raises(Exception, match="unable to open"):
        index(client)
    state = client.get("/api/jobs/job-1").json()["state"]
    assert state["status"] == "failed"
    assert state["error"] == {"type": "OperationalError", "message": "unable to open database file"}


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.txt"
    path.write_bytes(b"x" * 1001)
    with pytest.raises(Unreadable, match="larger than"):
        read_text(path, max_bytes=1000)
    assert len(read_text(path, max_bytes=1001)) == 1001


def test_utf16_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "wide.txt"
    path.write_text("Grüße", encoding="utf-16")
    assert read_text(path, 1000) == "Grüße"


@pytest.mark.parametrize("length", [1, 7, 50])
def test_chunks_keep_every_word_and_the_limit(length: int) -> None:
    text = "\n\n".join(" ".join(f"w{a}{b}" for b in range(a)) for a in range(12)) + "x" * 130
    chunks = list(split(text, length))
    assert all(0 < len(chunk) <= length for chunk in chunks)
    assert "".join("".join(chunks).split()) == "".join(text.split())


def test_indexing_a_document_again_replaces_its_chunks(tmp_path: Path) -> None:
    with SearchIndex(tmp_path / "index.sqlite3") as search:
        assert search.replace(1, "a.txt", ["old words", "more words"]) == 2
        assert search.replace(1, "a.txt", ["new text"]) == 1
        assert search.search("words") == []
        assert [found.passages for found in search.search("text")] == [1]
