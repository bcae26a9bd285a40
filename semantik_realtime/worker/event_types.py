"""Events of the application with a declared shape: msgspec structs, dataclasses, pydantic models.

::

    @event
    class FileDone(msgspec.Struct):
        file: str
        chunks: int

    job.emit(FileDone(file="a.pdf", chunks=3))
    job.emit("file_done", file="a.pdf", chunks=3)
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

import msgspec

from semantik_realtime.core.lifecycle import RESERVED_TYPES
from semantik_realtime.core.topic import check_type
from semantik_realtime.errors import EventError
from semantik_realtime.worker.values import BAD_VALUE, note_misuse

Class = TypeVar("Class", bound=type)

TYPE = "__realtime_type__"
"""Attribute of a declared class: the type of its events."""

declared: dict[str, type] = {}
"""The declared classes of this process, by the type of their events."""


@overload
def event(shape: Class, /) -> Class: ...
@overload
def event(type: str, /) -> Callable[[Class], Class]: ...
def event(shape: Any, /) -> Any:
    """Declare the shape of a type's events: a decorator, with the type's name or without.

    Without a name it is the class's own with underscores: ``FileDone`` is
    ``file_done``. From then on the data of each event of this type is checked when
    a task emits it, and ``semantik-realtime types`` prints its JSON Schema.

    Raises:
        EventError: the name is outside the grammar of types, or is one of a job's
            life; another class is declared for it; or the class has no shape.
    """
    if isinstance(shape, str):
        return lambda named: _declare(named, shape)
    if not isinstance(shape, type):
        raise EventError(f"{shape!r} is no class")
    return _declare(shape, type_name(shape))


def type_name(shape: type) -> str:
    """Return the type of a class's events, as declared or else by the class's name.

    >>> type_name(type("HTTPPageRead2", (), {}))
    'http_page_read2'
    """
    name = vars(shape).get(TYPE)
    if isinstance(name, str):
        return name
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", shape.__name__)
    return words.lower()


def declared_types() -> dict[str, type]:
    """Return the declared classes, by the type of their events, in alphabetical order."""
    return dict(sorted(declared.items()))


def read_event(
    given: Any, data: Mapping[str, Any], job_id: str
) -> tuple[str, Mapping[str, Any]] | None:
    """Return type and data of what a task emits; None, and noted, if it has not its shape.

    Args:
        given: the type's name, or an object of a class with a shape.
        data: further members; an object has none.
        job_id: for the log line.
    """
    try:
        if isinstance(given, str):
            _check(declared.get(given), data)
            return given, data
        if not _has_shape(type(given)):
            raise TypeError(f"{type(given).__name__} is no msgspec struct, dataclass or model")
        if data:
            note_misuse("an event of a class has no further members", job_id, repr(sorted(data)))
        return type_name(type(given)), _dumped(given)
    except (*BAD_VALUE, AttributeError) as error:
        name = given if isinstance(given, str) else type(given).__name__
        note_misuse(f"event dropped, it does not have the shape of {name}", job_id, str(error))
        return None


def _declare(shape: Any, name: str) -> Any:
    check_type(name)
    if name in RESERVED_TYPES:
        raise EventError(f"{name} is a type of a job's life")
    if not _has_shape(shape):
        raise EventError(f"{shape!r} is no msgspec struct, dataclass or pydantic model")
    other = declared.get(name)
    if other is not None and (other.__module__, other.__qualname__) != (
        shape.__module__,
        shape.__qualname__,
    ):
        raise EventError(f"{name} is declared by {other.__qualname__} already")
    declared[name] = shape
    setattr(shape, TYPE, name)
    return shape


def _is_pydantic(shape: type) -> bool:
    return hasattr(shape, "__pydantic_validator__") and hasattr(shape, "model_json_schema")


def _has_shape(shape: Any) -> bool:
    return isinstance(shape, type) and (
        issubclass(shape, msgspec.Struct) or dataclasses.is_dataclass(shape) or _is_pydantic(shape)
    )


def _check(shape: Any, data: Mapping[str, Any]) -> None:
    """Check the data of an event that was given as names and values; further names may be there."""
    if shape is None:
        return
    if _is_pydantic(shape):
        shape.model_validate(dict(data))
    else:
        msgspec.convert(data, shape)


def _dumped(given: Any) -> Mapping[str, Any]:
    """Return an object's members, each checked, for an object may be made or changed unchecked."""
    shape: Any = type(given)
    if _is_pydantic(shape):
        # It raises where a value has not the type of its field.
        members: Any = given.model_dump(mode="json", by_alias=True, warnings="error")
    else:
        members = msgspec.to_builtins(given)
        msgspec.convert(members, shape)
    if not isinstance(members, dict):
        raise TypeError(f"{shape.__name__} is no object with members")
    return members
