"""A damaged spool file: what is whole is sent as it was, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from topic_log import wait_until

from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.core.event import Draft, StateChange, encode_body
from semantik_realtime.core.readable import find_fault
from semantik_realtime.emitter import spool_file
from semantik_realtime.emitter.emitter import Emitter
from semantik_realtime.emitter.spool_file import HEADER, HEADER_WITHOUT_CHECKSUMS, open_orphan

TIME = "2026-01-01T00:00:00.000Z"
COUNT = 6


def draft(number: int, *, type: str = "note", terminal: bool = False) -> Draft:
    body = encode_body(type, TIME, "1", state={"text": f"Zoë {number}"}, terminal=terminal)
    return Draft(
        topic="job:1",
        type=type,
        key="1",
        body=body,
        change=StateChange.SET,
        terminal=terminal,
        producer="p",
        number=number,
        job="1",
        attempt=1,
    )


DRAFTS = [draft(number) for number in range(1, COUNT)] + [
    draft(COUNT, type="job_completed", terminal=True)
]
NEW = HEADER + b"\n" + b"".join(map(spool_file._line, DRAFTS))
OLD = HEADER_WITHOUT_CHECKSUMS + b"\n" + b"".join(spool_file._line(one)[9:] for one in DRAFTS)


def facts(drafts: Sequence[Draft]) -> list[list[object]]:
    return [[getattr(one, name) for name in Draft.__struct_fields__] for one in drafts]


def recover(directory: Path, text: bytes) -> tuple[list[Draft], int]:
    """Return the drafts of a file, and how many lines were skipped; none if it is left alone."""
    (directory / f"file{spool_file.SUFFIX}").write_bytes(text)
    orphan = open_orphan(directory, set())
    if orphan is None:
        return [], 0
    drafts: list[Draft] = []
    while part := orphan.next_batch(3):
        drafts += part
    orphan.remove()
    return drafts, orphan.unreadable


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(NEW) - 1), st.binary(max_size=2))
@example(0, b"\n")
@example(len(HEADER), b"")
def test_damage_at_one_place_changes_no_draft_and_loses_two_at_most(
    place: int, instead: bytes
) -> None:
    damaged = NEW[:place] + instead + NEW[place + 1 :]
    with TemporaryDirectory() as directory:
        drafts, unreadable = recover(Path(directory), damaged)
    if damaged.partition(b"\n")[0] != HEADER and not drafts:
        # It reads as the header of another version: the file is left alone, and logged.
        assert spool_file._ANY_HEADER.fullmatch(damaged.partition(b"\n")[0])
        return
    assert len(drafts) >= COUNT - 2
    assert unreadable or len(drafts) >= COUNT - 1
    found, whole = facts(drafts), facts(DRAFTS)
    assert all(one in whole for one in found)
    assert [one.number for one in drafts] == sorted(one.number for one in drafts)


def test_a_file_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    drafts, unreadable = recover(tmp_path, OLD)
    assert facts(drafts) == facts(DRAFTS)
    assert unreadable == 0


@settings(max_examples=300, deadline=None)
@given(st.integers(len(HEADER) + 1, len(OLD) - 1), st.integers(1, 255))
def test_of_a_damaged_file_without_checksums_comes_nothing_that_no_client_can_read(
    place: int, flipped: int
) -> None:
    damaged = OLD[:place] + bytes([OLD[place] ^ flipped]) + OLD[place + 1 :]
    with TemporaryDirectory() as directory:
        drafts, _ = recover(Path(directory), damaged)
    for one in drafts:
        assert not find_fault(b'{"offset":1,' + one.body[1:], 1)
        assert (one.terminal, one.type) in ((False, "note"), (True, "job_completed"))


def test_the_rest_of_a_damaged_file_is_sent_and_the_loss_is_visible(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # In the body of the third draft, which then is no UTF-8.
    lines = NEW.split(b"\n")
    lines[3] = lines[3][:-40] + b"\x80" + lines[3][-39:]
    (tmp_path / f"file{spool_file.SUFFIX}").write_bytes(b"\n".join(lines))
    memory = MemoryBackend(Settings(backend="memory"))
    emitter = Emitter(_Writer(memory), directory=tmp_path)
    with caplog.at_level(logging.WARNING, "semantik_realtime"):
        emitter.recover()
        wait_until(lambda: not list(tmp_path.iterdir()))
    wait_until(lambda: emitter.stats.appended == COUNT - 1)
    assert emitter.stats.unreadable == 1
    emitter.close(5)
    entries = memory._logs["job:1"].entries
    assert b"job_completed" in entries[-1][0].json
    assert [find_fault(event.json, event.offset) for event, *_ in entries] == [""] * (COUNT - 1)
    assert caplog.text.count("spool file damaged, lines skipped") == 1


class _Writer:
    """A writer that never fails."""

    fails_writes = False

    def __init__(self, memory: MemoryBackend) -> None:
        self.publish = memory.publish
        self.claim = memory.claim
        self.hold = memory.hold

    def close_writer(self) -> None:
        pass

    def read_start(self, topic: str, job: str) -> str:
        return ""
