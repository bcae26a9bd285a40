"""Waiting drafts outlive their process: real processes that are killed, and a real server."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import secrets
import signal
import stat
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from topic_log import Log, Reader, wait_until

from semantik_realtime.backends.guard import GuardedBackend
from semantik_realtime.backends.loader import load_backend
from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Draft, Receipt, StateChange, encode_body
from semantik_realtime.emitter import emitter as emitter_module
from semantik_realtime.emitter import sender, spool_file, spool_recovery
from semantik_realtime.emitter.emitter import Emitter
from semantik_realtime.emitter.spool_file import HEADER, SpoolFile, open_orphan
from semantik_realtime.errors import BackendUnavailable
from semantik_realtime.testing.servers import ROWS, Server

HERE = Path(__file__).parent
TIME = "2026-01-01T00:00:00.000Z"


def draft(number: int, *, topic: str = "job:1", terminal: bool = False, text: str = "") -> Draft:
    state = {"number": number, "text": text}
    return Draft(
        topic=topic,
        type="note",
        key="1",
        body=encode_body("note", TIME, "1", state=state, terminal=terminal),
        change=StateChange.SET,
        terminal=terminal,
        producer="p",
        number=number,
        job="1",
        attempt=1,
    )


def store(directory: Path, drafts: Sequence[Draft]) -> Path:
    """Store ``drafts`` in a spool file, as of a process that has ended; return its path."""
    file = SpoolFile(directory, 2**24)
    file.store(drafts, lambda: drafts)
    path = file._path
    assert path is not None
    file.release()
    return path


def recover(directory: Path) -> list[Draft]:
    """Return the drafts in the oldest file of an ended process, and remove the file."""
    orphan = open_orphan(directory, set())
    assert orphan is not None
    drafts: list[Draft] = []
    while part := orphan.next_batch(3):
        drafts += part
    orphan.remove()
    return drafts


# The file.


def test_drafts_come_back_as_they_were(tmp_path: Path) -> None:
    drafts = [draft(number, text='a\n"ü"\u2028') for number in range(1, 10)]
    drafts[3].change, drafts[3].job, drafts[3].attempt, drafts[3].owner = (
        StateChange.KEEP,
        None,
        None,
        "7",
    )
    store(tmp_path, drafts)
    fields = Draft.__struct_fields__
    assert [[getattr(one, name) for name in fields] for one in recover(tmp_path)] == [
        [getattr(one, name) for name in fields] for one in drafts
    ]
    assert list(tmp_path.iterdir()) == []


def test_drafts_stored_later_are_appended_to_the_file(tmp_path: Path) -> None:
    file = SpoolFile(tmp_path, 2**24)
    drafts = [draft(number) for number in range(1, 7)]
    file.store(drafts[:2], lambda: drafts[:2])
    file.store(drafts[2:3], pytest.fail)
    file.store(drafts[3:], pytest.fail)
    file.release()
    assert [one.number for one in recover(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_the_file_of_a_running_process_cannot_be_recovered(tmp_path: Path) -> None:
    file = SpoolFile(tmp_path, 2**24)
    file.store([draft(1)], lambda: [draft(1)])
    assert open_orphan(tmp_path, set()) is None
    file.release()
    orphan = open_orphan(tmp_path, set())
    assert orphan is not None
    assert open_orphan(tmp_path, set()) is None
    orphan.release()
    assert [one.number for one in recover(tmp_path)] == [1]


def test_a_file_that_its_owner_removes_while_another_process_opens_it_is_not_recovered(
    tmp_path: Path,
) -> None:
    file = SpoolFile(tmp_path, 2**24)
    file.store([draft(1)], lambda: [draft(1)])
    [path] = tmp_path.iterdir()
    descriptor = os.open(path, os.O_RDWR)
    file.remove()
    assert not spool_file._lock(descriptor)
    os.close(descriptor)


def test_a_file_whose_owner_died_before_it_wrote_is_removed(tmp_path: Path) -> None:
    (tmp_path / ("empty" + spool_file.SUFFIX)).touch()
    assert open_orphan(tmp_path, set()) is None
    assert list(tmp_path.iterdir()) == []


def test_only_their_owner_may_read_directory_and_file(tmp_path: Path) -> None:
    path = store(tmp_path / "spool" / "redis-app", [draft(1)])
    modes = [stat.S_IMODE(one.stat().st_mode) for one in (path, path.parent, path.parent.parent)]
    assert modes == [0o600, 0o700, 0o700]


def test_files_that_an_earlier_version_has_left_are_named_and_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = store(tmp_path / "redis-app", [draft(1)])
    assert spool_recovery.SpoolRecovery(tmp_path / "app").next_batch(10) == []
    [line] = [each for each in caplog.messages if "earlier version" in each]
    assert str(path.parent) in line
    assert path.exists()


def test_a_torn_last_line_loses_only_that_line(tmp_path: Path) -> None:
    drafts = [draft(number) for number in range(1, 6)]
    size = len(store(tmp_path / "whole", drafts).read_bytes())
    for cut in range(2, 150, 7):
        path = store(tmp_path / str(cut), drafts)
        os.truncate(path, size - cut)
        assert [one.number for one in recover(path.parent)] == [1, 2, 3, 4]


def encoded(draft: Draft) -> bytes:
    return spool_file._line(draft)[9:-1]


def with_checksum(text: bytes) -> bytes:
    return b"%08x %b\n" % (crc32(text), text)


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"\x00\xff rubbish\n",
        b"[]\n",
        b'{"topic":"job:1"}\n',
        with_checksum(encoded(draft(1)).replace(b"job:1", b"../up")),
        with_checksum(encoded(draft(1)).replace(b'"number":1', b'"number":0')),
        with_checksum(encoded(draft(1)).replace(b'"producer":"p"', b'"producer":""')),
        spool_file._line(
            Draft(topic="job:1", type="note", key="1", body=b"{", producer="p", number=1)
        ),
        b"x" * 1_000_000 + b"\n",
    ],
)
def test_a_line_that_cannot_be_read_is_left_out(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / ("file" + spool_file.SUFFIX)
    path.write_bytes(HEADER + b"\n" + 5 * line + spool_file._line(draft(1)) + line)
    with path.open("ab") as file:
        file.write(spool_file._line(draft(2)))
    assert [one.number for one in recover(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    "text", [b"rubbish", b"\n", b'{"semantik_realtime_drafts":3}\n{}\n', HEADER[:-3]]
)
def test_a_file_of_another_version_is_left_alone_and_logged_once(
    tmp_path: Path, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / ("other" + spool_file.SUFFIX)
    path.write_bytes(text)
    os.utime(path, (0, 0))
    store(tmp_path, [draft(1)])
    skipped: set[str] = set()
    orphan = open_orphan(tmp_path, skipped)
    assert orphan is not None
    assert [one.number for one in orphan.next_batch(9)] == [1]
    orphan.remove()
    assert open_orphan(tmp_path, skipped) is None
    assert path.read_bytes() == text
    assert caplog.text.count("skipped, it has another version") == 1


def test_no_link_out_of_the_directory_is_followed(tmp_path: Path) -> None:
    outside = store(tmp_path / "outside", [draft(1)])
    directory = tmp_path / "spool"
    directory.mkdir()
    (directory / ("link" + spool_file.SUFFIX)).symlink_to(outside)
    (directory / ("folder" + spool_file.SUFFIX)).mkdir()
    assert open_orphan(directory, set()) is None
    assert outside.exists()


def test_the_oldest_file_is_recovered_first(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        path = store(tmp_path, [draft(number)])
        os.utime(path, (10 - number, 10 - number))
    assert [recover(tmp_path)[0].number for _ in range(3)] == [3, 2, 1]


def test_a_file_is_bounded_by_the_drafts_that_wait(tmp_path: Path) -> None:
    waiting: deque[Draft] = deque(maxlen=10)
    file = SpoolFile(tmp_path, 2**24)
    biggest = 0
    for number in range(1, 20_001):
        waiting.append(draft(number, text="x" * 400))
        file.store([waiting[-1]], lambda: list(waiting))
        if number % 100 == 0:
            biggest = max(biggest, sum(one.stat().st_size for one in tmp_path.iterdir()))
    assert 2**20 / 2 < biggest < 2 * spool_file.SPARE_BYTES
    file.release()
    assert [one.number for one in recover(tmp_path)][-10:] == list(range(19_991, 20_001))


def test_no_file_is_started_if_those_of_all_processes_are_too_big(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "x" * 5000
    for number in range(1, spool_file.DIRECTORY_SPOOLS + 5):
        store(tmp_path, [draft(number, text=text)])
        if sum(one.stat().st_size for one in tmp_path.iterdir()) > 16 * 5000:
            break
    before = set(tmp_path.iterdir())
    file = SpoolFile(tmp_path, 5000)
    file.store([draft(99)], lambda: [draft(99)])
    assert not file.exists
    assert set(tmp_path.iterdir()) == before
    assert caplog.text.count("in memory only") == 1


@contextlib.contextmanager
def small_files(max_bytes: int) -> Iterator[None]:
    """A disk that is nearly full: no file of this process can be bigger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_logged_once_and_all_is_stored_when_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_file, "RETRY_SECONDS", 0.0)
    drafts = [draft(number) for number in range(1, 31)]
    file = SpoolFile(tmp_path, 2**24)
    with small_files(2000):
        for end in range(1, 21):
            file.store(drafts[end - 1 : end], lambda end=end: drafts[:end])
    # What was stored before is still there, without a half-written line.
    assert len(list(tmp_path.iterdir())) == 1
    assert caplog.text.count("in memory only") == 1
    file.store(drafts[20:21], lambda: drafts[:21])
    file.store(drafts[21:], lambda: drafts)
    file.release()
    assert [one.number for one in recover(tmp_path)] == list(range(1, 31))
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_file, "RETRY_SECONDS", 0.0)
    (tmp_path / "file").touch()
    file = SpoolFile(tmp_path / "file" / "spool", 2**24)
    for number in range(1, 5):
        file.store([draft(number)], lambda: [draft(1)])
    assert not file.exists
    assert caplog.text.count("in memory only") == 1


# An emitter with a file.


class Line:
    """A memory backend that can be away."""

    def __init__(self) -> None:
        self.guard = GuardedBackend(self, 5.0)
        self.backend = MemoryBackend(Settings(backend="memory"))
        self.is_away = False

    def close_writer(self) -> None:
        pass

    def publish(self, drafts: Sequence[Draft]) -> list[Receipt]:
        if self.is_away:
            raise BackendUnavailable("away")
        return self.backend.publish(drafts)

    def numbers(self) -> list[int]:
        log = self.backend._logs.get("job:1")
        events = [] if log is None else [json.loads(entry[0].json) for entry in log.entries]
        return [event["state"]["number"] for event in events]


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def make_emitter(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Emitter]]:
    monkeypatch.setattr(sender, "FIRST_RETRY_SECONDS", 0.01)
    made: list[Emitter] = []

    def make(**limits: int) -> Emitter:
        made.append(Emitter(line.guard, directory=tmp_path, **limits))
        return made[-1]

    yield make
    line.is_away = False
    for emitter in made:
        emitter.close(5)


def lines_stored(directory: Path) -> list[bytes]:
    """Return the lines of all files; a missing directory has none."""
    lines = []
    # A file may be removed or half written while this reads it.
    with contextlib.suppress(FileNotFoundError):
        for path in directory.iterdir():
            text = path.read_bytes()
            lines += text[: text.rfind(b"\n") + 1].splitlines()[1:]
    return lines


def stored(directory: Path) -> list[int]:
    """Return the numbers of the drafts in all files."""
    drafts = map(spool_file._read, lines_stored(directory))
    return [json.loads(one.body)["state"]["number"] for one in drafts]


def test_nothing_is_on_disk_while_the_backend_answers(
    make_emitter: Callable[..., Emitter], tmp_path: Path
) -> None:
    emitter = make_emitter()
    for number in range(1, 2000):
        emitter.emit(draft(number))
    assert emitter.flush(10)
    assert list(tmp_path.iterdir()) == []


def test_waiting_drafts_are_on_disk_until_they_are_sent(
    make_emitter: Callable[..., Emitter], line: Line, tmp_path: Path
) -> None:
    emitter = make_emitter()
    line.is_away = True
    for number in range(1, 1001):
        emitter.emit(draft(number))
    wait_until(lambda: len(stored(tmp_path)) == 1000)
    assert stored(tmp_path) == list(range(1, 1001))
    line.is_away = False
    assert emitter.flush(10)
    wait_until(lambda: not list(tmp_path.iterdir()))
    assert line.numbers() == list(range(1, 1001))
    # A later outage is like the first.
    line.is_away = True
    emitter.emit(draft(1001))
    wait_until(lambda: stored(tmp_path) == [1001])


def test_a_file_exists_until_its_last_draft_is_sent(
    make_emitter: Callable[..., Emitter],
    line: Line,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(emitter_module, "MAX_BATCH", 7)
    emitter = make_emitter()
    line.is_away = True
    for number in range(1, 31):
        emitter.emit(draft(number))
    wait_until(lambda: len(stored(tmp_path)) == 30)
    files: list[int] = []
    publish = line.backend.publish
    monkeypatch.setattr(
        line.backend,
        "publish",
        lambda drafts: files.append(len(list(tmp_path.iterdir()))) or publish(drafts),
    )
    line.is_away = False
    assert emitter.flush(10)
    assert len(files) >= 5
    assert set(files) == {1}
    # Drafts emitted after the outage are not stored.
    emitter.emit(draft(31))
    assert emitter.flush(10)
    assert files[-1] == 0


def test_dropped_drafts_do_not_stay_on_disk(
    make_emitter: Callable[..., Emitter], line: Line, tmp_path: Path
) -> None:
    emitter = make_emitter(max_drafts=50)
    line.is_away = True
    text = "x" * 1000
    for number in range(1, 5001):
        emitter.emit(draft(number, text=text, terminal=number == 5000))
    wait_until(lambda: stored(tmp_path)[-1:] == [5000])
    assert sum(map(len, lines_stored(tmp_path))) < 2 * spool_file.SPARE_BYTES


def test_drafts_that_a_closed_emitter_left_are_sent_by_the_next_one(
    make_emitter: Callable[..., Emitter], line: Line, tmp_path: Path
) -> None:
    first = make_emitter()
    line.is_away = True
    for number in range(1, 601):
        first.emit(draft(number))
    assert not first.close(0.1)
    wait_until(lambda: first._thread is None)
    line.is_away = False
    second = make_emitter()
    second.recover()
    wait_until(lambda: not list(tmp_path.iterdir()))
    assert line.numbers() == list(range(1, 601))
    # If the first emitter goes on, its drafts are duplicates.
    assert first.flush(5)
    assert line.numbers() == list(range(1, 601))
    assert first.stats.duplicate == 600


def test_a_running_emitter_looks_for_files_repeatedly(
    make_emitter: Callable[..., Emitter],
    line: Line,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spool_recovery, "LOOK_SECONDS", 0.05)
    make_emitter().recover()
    for number in range(1, 4):
        store(tmp_path, [draft(number)])
        wait_until(lambda number=number: line.numbers() == list(range(1, number + 1)))
    wait_until(lambda: not list(tmp_path.iterdir()))


def test_recovered_drafts_that_cannot_be_sent_stay_on_disk_until_they_can(
    make_emitter: Callable[..., Emitter],
    line: Line,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spool_recovery, "LOOK_SECONDS", 0.05)
    line.is_away = True
    store(tmp_path, [draft(1), draft(2)])
    emitter = make_emitter()
    emitter.recover()
    wait_until(lambda: emitter.stats.failures >= 3)
    assert stored(tmp_path) == [1, 2]
    line.is_away = False
    wait_until(lambda: line.numbers() == [1, 2])


def test_files_of_ended_processes_are_looked_for_as_soon_as_the_backend_is_back(
    make_emitter: Callable[..., Emitter],
    line: Line,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spool_recovery, "LOOK_SECONDS", 3600.0)
    emitter = make_emitter()
    line.is_away = True
    emitter.emit(draft(3, topic="job:3"))
    wait_until(lambda: line.guard.fails_writes)
    store(tmp_path, [draft(1), draft(2)])
    line.is_away = False
    wait_until(lambda: line.numbers() == [1, 2])


# Processes.


class Reporter:
    """A process of its own that sends the events of jobs (``reporter.py``)."""

    def __init__(self, settings: Settings, log: Path, file_bytes: int | None = None) -> None:
        self._settings = settings
        self._log = log
        environment = {
            **os.environ,
            "SEMANTIK_REALTIME_BACKEND": settings.backend,
            "SEMANTIK_REALTIME_URL": settings.url or "",
            "SEMANTIK_REALTIME_PREFIX": settings.prefix,
            "SEMANTIK_REALTIME_TIMEOUT_SECONDS": "1",
            "SEMANTIK_REALTIME_SPOOL_DIRECTORY": settings.spool_directory or "",
        }
        limit = (file_bytes, file_bytes)
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "reporter.py")],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                preexec_fn=lambda: file_bytes and resource.setrlimit(resource.RLIMIT_FSIZE, limit),
            )

    def run(self, *commands: str) -> dict[str, Any]:
        """Run commands; return the status after the last one."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        status: dict[str, Any] = {}
        for command in commands:
            self.process.stdin.write(command.encode() + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
            assert line, self.log
            status = json.loads(line)
        return status

    def wait_until(self, condition: Callable[[dict[str, Any]], object]) -> None:
        wait_until(lambda: condition(self.run("status")), 20)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def default_row() -> str:
    return "valkey"


@pytest.fixture
def settings(server: Server, row: str, tmp_path: Path) -> Settings:
    return Settings(
        backend=ROWS[row].backend,
        url=server.url,
        prefix=f"t{secrets.token_hex(5)}",
        spool_directory=str(tmp_path / "spool"),
    )


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Callable[..., Reporter]]:
    """Start a process; all of them are killed after the test."""
    started: list[Reporter] = []

    def start(**limits: int) -> Reporter:
        started.append(Reporter(settings, tmp_path / f"log{len(started)}", **limits))
        return started[-1]

    yield start
    for reporter in started:
        reporter.kill()


@pytest.fixture
def look(settings: Settings) -> Iterator[Callable[[str], Log]]:
    """Return the log of a topic."""
    reader = Reader(load_backend(settings))
    yield lambda topic: Log(reader, topic)
    reader.close()


def notes(log: Log) -> list[int]:
    return [event["data"]["number"] for event in log.events if event["type"] == "note"]


def has_ended(log: Log, job: str) -> bool:
    own = [event for event in log.events if event["key"] == job]
    return bool(own) and own[-1]["type"] == "job_completed"


def is_end_stored(settings: Settings) -> bool:
    """Return True if one job's end is on disk, for its own topic and for its owner's feed."""
    assert settings.spool_path is not None
    return sum(b'"terminal":true' in line for line in lines_stored(settings.spool_path)) == 2


def report_in_an_outage(reporter: Reporter, server: Server, settings: Settings) -> None:
    """Send events of job 1 before an outage and during it; those during it are on disk."""
    reporter.run("begin 1", *(f"emit 1 {number}" for number in range(10)), "flush")
    server.kill()
    reporter.run("emit 1 10")
    reporter.wait_until(lambda status: status["failing"])
    reporter.run(*(f"emit 1 {number}" for number in range(11, 20)), "progress 1 500", "end 1")
    wait_until(lambda: is_end_stored(settings))


def test_events_of_a_process_killed_in_an_outage_are_sent_once_by_the_next_one(
    server: Server,
    settings: Settings,
    start: Callable[..., Reporter],
    look: Callable[[str], Log],
) -> None:
    first = start()
    report_in_an_outage(first, server, settings)
    first.kill()
    server.start()
    second = start()
    second.run("recover")
    own, feed = look("job:1"), look("user:7")
    wait_until(lambda: has_ended(feed, "1"), 20)
    assert (own.types[0], own.types[-1]) == ("job_started", "job_completed")
    assert own.types.count("job_completed") == 1
    assert notes(own) == list(range(20))
    assert own.state["progress"] == {"current": 500, "total": 1000}
    assert feed.types.count("job_completed") == 1
    wait_until(lambda: not list(settings.spool_path.iterdir()))
    assert second.run("status")["duplicate"] == 0


def test_what_a_process_began_in_an_outage_that_it_did_not_survive_is_held_to_be_ended(
    server: Server,
    settings: Settings,
    start: Callable[..., Reporter],
    look: Callable[[str], Log],
) -> None:
    first = start()
    first.run("begin 1", "flush")
    server.kill()
    first.run("begin 2", "begin 3", "end 3", "emit 1 0", "emit 2 0")
    first.wait_until(lambda status: status["failing"])
    first.run("emit 1 1", "emit 2 1")
    second_note = b'"number":1'

    def stored() -> set[str]:
        """Return the topics of which the second note is on the disk."""
        drafts = [spool_file._read(one) for one in lines_stored(settings.spool_path)]
        return {one.topic for one in drafts if second_note in one.body}

    wait_until(lambda: stored() >= {"job:1", "job:2"})
    first.kill()
    server.start()
    start().run("recover")
    running = look("job:2")
    wait_until(lambda: notes(running) == [0, 1], 20)
    backend = load_backend(settings)
    found: dict[str, str] = {}

    def is_found() -> bool:
        # The backend knew the first job before the outage.
        for holding in backend.overdue(60):
            found.update(dict.fromkeys(holding.jobs, holding.worker))
        return found.keys() >= {"1", "2"}

    try:
        wait_until(is_found, 40)
    finally:
        backend.close_writer()
    assert found.keys() == {"1", "2"}
    assert found["2"] == running.state["worker"]


def test_events_of_a_killed_process_are_sent_by_a_running_sibling(
    server: Server,
    settings: Settings,
    start: Callable[..., Reporter],
    look: Callable[[str], Log],
) -> None:
    sibling, first = start(), start()
    sibling.run("begin 2", "flush")
    report_in_an_outage(first, server, settings)
    sibling.run("emit 2 0")
    sibling.wait_until(lambda status: status["failing"])
    first.kill()
    server.start()
    wait_until(lambda: has_ended(look("user:7"), "1"), 20)
    assert notes(look("job:1")) == list(range(20))
    wait_until(lambda: not list(settings.spool_path.iterdir()))


def test_only_one_of_two_siblings_recovers_a_file(
    settings: Settings, start: Callable[..., Reporter], look: Callable[[str], Log]
) -> None:
    assert settings.spool_path is not None
    for file in range(3):
        drafts = [draft(number, topic=f"job:{file}") for number in range(1, 901)]
        store(settings.spool_path, drafts)
    siblings = [start(), start()]
    for one in siblings:
        one.run("status")
    for one in siblings:
        one.run("recover")
    wait_until(lambda: not list(settings.spool_path.iterdir()), 20)
    statuses = [one.run("status") for one in siblings]
    assert sum(one["appended"] for one in statuses) == 2700
    assert sum(one["duplicate"] for one in statuses) == 0
    for file in range(3):
        offsets = [event["state"]["number"] for event in look(f"job:{file}").events]
        assert offsets == list(range(1, 901))


@pytest.mark.parametrize("forks_first", [True, False])
def test_a_child_that_outlives_its_parent_does_not_keep_the_file(
    server: Server,
    settings: Settings,
    start: Callable[..., Reporter],
    look: Callable[[str], Log],
    forks_first: bool,
) -> None:
    first, second = start(), start()
    child = first.run("fork")["child"] if forks_first else 0
    report_in_an_outage(first, server, settings)
    child = child or first.run("fork")["child"]
    try:
        # While the parent runs, no process can recover its file.
        assert open_orphan(settings.spool_path, set()) is None
        first.process.kill()
        first.process.wait()
        server.start()
        second.run("recover")
        wait_until(lambda: has_ended(look("user:7"), "1"), 20)
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
    assert notes(look("job:1")) == list(range(20))


def test_events_of_a_process_killed_while_its_backend_hangs_are_sent_too(
    server: Server,
    settings: Settings,
    start: Callable[..., Reporter],
    look: Callable[[str], Log],
) -> None:
    first = start()
    first.run("begin 1", "flush")
    server.pause()
    first.run("emit 1 0")
    # The first call must have failed; later ones hang too, and delay no storing.
    wait_until(lambda: first.run("status")["failures"] >= 1, 20)
    first.run("emit 1 1", "end 1")
    wait_until(lambda: is_end_stored(settings))
    first.kill()
    server.resume()
    start().run("recover")
    wait_until(lambda: has_ended(look("user:7"), "1"), 20)
    assert notes(look("job:1")) == [0, 1]
    assert look("job:1").types.count("job_completed") == 1


def test_a_full_disk_is_survived(
    server: Server,
    settings: Settings,
    start: Callable[..., Reporter],
    look: Callable[[str], Log],
) -> None:
    reporter = start(file_bytes=3000)
    reporter.run("begin 1", "flush")
    server.kill()
    reporter.run("emit 1 0")
    reporter.wait_until(lambda status: status["failing"])
    for number in range(1, 100):
        reporter.run(f"emit 1 {number}")
    reporter.run("end 1")
    wait_until(lambda: "in memory only" in reporter.log)
    server.start()
    wait_until(lambda: has_ended(look("user:7"), "1"), 20)
    assert notes(look("job:1")) == list(range(100))
    assert reporter.log.count("in memory only") == 1
    assert "Traceback" not in reporter.log
    wait_until(lambda: not list(settings.spool_path.iterdir()))


def test_processes_of_another_prefix_are_not_touched(
    settings: Settings, start: Callable[..., Reporter]
) -> None:
    assert settings.spool_path is not None
    other = settings.spool_path.with_name("redis-other")
    path = store(other, [draft(1)])
    mine = store(settings.spool_path, [draft(1)])
    start().run("recover")
    wait_until(lambda: not mine.exists())
    assert path.exists()
