"""Events with a declared shape."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel, Field
from topic_log import Log

from semantik_realtime import event, job
from semantik_realtime.errors import EventError
from semantik_realtime.worker import event_types
from semantik_realtime.worker.event_types import declared_types, type_name
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.values import misuse

Look = Callable[[str], Log]


class FileDone(msgspec.Struct):
    file: str
    chunks: int


@dataclasses.dataclass
class PageRead:
    number: int
    at: datetime.date


class Found(BaseModel):
    name: str
    score: float = Field(ge=0, serialization_alias="points")


class Step(StrEnum):
    FILE = "file_done"


@pytest.fixture(autouse=True)
def _declare_nothing() -> Iterator[None]:
    before = dict(event_types.declared)
    event_types.declared.clear()
    yield
    event_types.declared.clear()
    event_types.declared.update(before)
    for shape in (FileDone, PageRead, Found):
        if event_types.TYPE in vars(shape):
            delattr(shape, event_types.TYPE)


def sent(log: Look) -> list[tuple[str, Any]]:
    return [(one["type"], one["data"]) for one in log("job:1").events if "data" in one]


def test_an_object_is_an_event_of_its_classs_type(running: Job, log: Look) -> None:
    job.emit(FileDone(file="a.pdf", chunks=3))
    job.emit(PageRead(number=3, at=datetime.date(2026, 1, 2)))
    job.emit(Found(name="x", score=0.5))
    assert sent(log) == [
        ("file_done", {"file": "a.pdf", "chunks": 3}),
        ("page_read", {"number": 3, "at": "2026-01-02"}),
        ("found", {"name": "x", "points": 0.5}),
    ]
    assert not misuse


@pytest.mark.parametrize(
    "wrong",
    [
        FileDone(file=3, chunks="x"),  # type: ignore[arg-type]
        PageRead(number="x", at=datetime.date(2026, 1, 2)),  # type: ignore[arg-type]
        Found.model_construct(name=3, score="x"),
        7,
        None,
        {"file": "a.pdf"},
        ["file_done"],
        FileDone,
    ],
    ids=repr,
)
def test_what_has_not_its_shape_is_dropped_and_noted(running: Job, log: Look, wrong: Any) -> None:
    job.emit(wrong)
    assert sent(log) == []
    assert misuse.total() == 1


def test_an_object_takes_no_further_members(running: Job, log: Look) -> None:
    job.emit(FileDone(file="a.pdf", chunks=3), more=1)
    assert sent(log) == [("file_done", {"file": "a.pdf", "chunks": 3})]
    assert misuse["an event of a class has no further members"] == 1


def test_a_declared_type_is_checked_also_when_it_is_given_by_name(running: Job, log: Look) -> None:
    event(FileDone)
    event("hit")(Found)
    job.emit("file_done", file="a.pdf", chunks=3, more=1)
    job.emit("hit", name="x", score=1)
    job.emit(Found(name="y", score=1))
    job.emit(Step.FILE, file="b.pdf", chunks=0)
    job.emit("file_done", file="a.pdf")
    job.emit("file_done", file="a.pdf", chunks="3")
    job.emit("hit", name="x", score=-1)
    job.emit("undeclared", anything=[1])
    assert sent(log) == [
        ("file_done", {"file": "a.pdf", "chunks": 3, "more": 1}),
        ("hit", {"name": "x", "score": 1}),
        ("hit", {"name": "y", "points": 1.0}),
        ("file_done", {"file": "b.pdf", "chunks": 0}),
        ("undeclared", {"anything": [1]}),
    ]
    assert misuse["event dropped, it does not have the shape of file_done"] == 2
    assert misuse["event dropped, it does not have the shape of hit"] == 1


def test_an_objects_type_may_not_be_one_of_a_jobs_life(running: Job, log: Look) -> None:
    class JobFailed(msgspec.Struct):
        pass

    job.emit(JobFailed())
    assert misuse["reserved event type"] == 1
    with pytest.raises(EventError, match="job_failed is a type of a job's life"):
        event(JobFailed)


def test_a_name_belongs_to_one_class(running: Job) -> None:
    event(FileDone)
    event(FileDone)
    with pytest.raises(EventError, match="file_done is declared by FileDone already"):
        event("file_done")(Found)
    assert declared_types() == {"file_done": FileDone}


@pytest.mark.parametrize("shape", [int, dict, str, 5, None])
def test_a_class_without_a_shape_cannot_be_declared(shape: Any) -> None:
    if isinstance(shape, type):
        with pytest.raises(EventError, match="no msgspec struct"):
            event(shape)
    else:
        with pytest.raises(EventError, match="no class"):
            event(shape)
    with pytest.raises(EventError):
        event("Bad Name")(FileDone)


def test_a_subclass_has_a_type_of_its_own() -> None:
    event("done")(FileDone)

    class PageDone(FileDone):
        pass

    assert (type_name(FileDone), type_name(PageDone)) == ("done", "page_done")


def test_outside_a_job_nothing_is_checked() -> None:
    job.emit(FileDone(file=3, chunks="x"))  # type: ignore[arg-type]
    assert not misuse


def test_the_command_prints_a_schema_for_the_front_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from semantik_realtime.cli.commands import cli

    (tmp_path / "shop_events.py").write_text(
        """
from __future__ import annotations
import msgspec
from pydantic import BaseModel
from semantik_realtime import event

class Place(msgspec.Struct):
    page: int

@event
class WordFound(msgspec.Struct):
    word: str
    places: list[Place]

class Author(BaseModel):
    name: str

@event("book_read")
class Book(BaseModel):
    title: str
    author: Author
"""
    )
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["types", "shop_events"])
    assert done.exit_code == 0, done.output
    schema = json.loads(done.output)
    assert schema["required"] == ["book_read", "word_found"]
    assert schema["properties"]["word_found"] == {"$ref": "#/$defs/WordFound"}
    assert set(schema["$defs"]) == {"Author", "Book", "Place", "WordFound"}
    assert schema["$defs"]["Book"]["properties"]["author"] == {"$ref": "#/$defs/Author"}
    assert schema["$defs"]["Place"]["required"] == ["page"]
    references = {part.partition('"')[0] for part in done.output.split('"$ref": "#/$defs/')[1:]}
    assert references <= set(schema["$defs"])


def test_the_command_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from semantik_realtime.cli.types import run_types, schema_of
    from semantik_realtime.errors import ConfigError

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no_such_module cannot be imported"):
        run_types(["no_such_module"])
    with pytest.raises(ConfigError, match="no type is declared with @event in json"):
        run_types(["json"])
    other = type("FileDone", (BaseModel,), {"__annotations__": {"other": str}})
    with pytest.raises(ConfigError, match="two classes with the name FileDone"):
        schema_of({"a": FileDone, "b": other})
