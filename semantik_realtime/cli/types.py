"""``semantik-realtime types``: the shapes of an application's events as JSON Schema."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from semantik_realtime.errors import ConfigError
from semantik_realtime.worker.event_types import declared_types

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def run_types(modules: Iterable[str]) -> str:
    """Import ``modules`` and return the schema of all types that are declared then.

    Raises:
        ConfigError: a module cannot be imported, it declares no type, or two classes of
            different shapes have one name.
    """
    # As the `celery` command does.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(f"the module {module} cannot be imported: {error}") from error
    shapes = declared_types()
    if not shapes:
        raise ConfigError(f"no type is declared with @event in {', '.join(modules)}")
    return json.dumps(schema_of(shapes), indent=2)


def schema_of(shapes: Mapping[str, type]) -> dict[str, Any]:
    """Return one JSON Schema: an object with a member for each type, the data of its events.

    Raises:
        ConfigError: two classes of different shapes have one name.
    """
    properties: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    for type, shape in shapes.items():
        schema, parts = _schema_of(shape)
        properties[type] = schema
        for name, part in parts.items():
            if definitions.setdefault(name, part) != part:
                raise ConfigError(f"two classes with the name {name} have different shapes")
    return {
        "$schema": DIALECT,
        "title": "Events",
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "$defs": dict(sorted(definitions.items())),
    }


def _schema_of(shape: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the schema of a class, and the definitions to which it refers."""
    if hasattr(shape, "model_json_schema"):
        whole = shape.model_json_schema(mode="serialization", ref_template="#/$defs/{model}")
        parts = whole.pop("$defs", {})
        if "$ref" in whole:
            # A class that contains itself is among its own definitions.
            return whole, parts
        return {"$ref": f"#/$defs/{shape.__name__}"}, {**parts, shape.__name__: whole}
    [schema], parts = msgspec.json.schema_components([shape], ref_template="#/$defs/{name}")
    return schema, parts
