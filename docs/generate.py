"""Writes what the documentation says about settings, from the settings themselves.

Run it after a change of ``semantik_realtime/config.py``::

    python docs/generate.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from semantik_realtime.config import PREFIX, Settings

HERE = Path(__file__).parent
GROUPS = {
    "backend": "Backend and retention",
    "mirror": "Workers and writing",
    "path": "Web side",
}
"""The first setting of each group, and the group's heading."""

HEAD = """\
# Configuration

<!-- Written by docs/generate.py from semantik_realtime/config.py. Do not edit. -->

Every setting is an environment variable, and may be given in code too:
`Settings(backend="memory", retention_events=200)`. A wrong value is refused at start with a
message that names it. [`.env.example`](../.env.example) has all of them with their defaults.

What only the NATS backend reads, `SEMANTIK_REALTIME_NATS_*`, is in
[its README](../plugins/semantik-realtime-nats/README.md#settings).
"""


def variables(name: str, field: FieldInfo) -> list[str]:
    """The environment variables of a setting, the one that wins first."""
    alias = field.validation_alias
    if alias is None:
        return [PREFIX + name.upper()]
    return [str(choice) for choice in alias.choices]  # type: ignore[union-attr]


def default_text(field: FieldInfo) -> str:
    """A default as it would be written in the environment; empty for none."""
    value = field.default
    if value is None or isinstance(value, SecretStr):
        return ""
    if isinstance(value, list):
        return ",".join(value)
    if isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def configuration() -> str:
    """The text of configuration.md."""
    parts = [HEAD]
    for name, field in Settings.model_fields.items():
        if name in GROUPS:
            parts.append(
                f"\n## {GROUPS[name]}\n\n| variable | default | meaning |\n|---|---|---|\n"
            )
        first, *others = [f"`{variable}`" for variable in variables(name, field)]
        names = first + "".join(f"<br>or {other}" for other in others)
        default = default_text(field)
        parts.append(f"| {names} | {f'`{default}`' if default else ''} | {field.description} |\n")
    return "".join(parts)


def example() -> str:
    """The text of .env.example: every setting, switched off, with its default."""
    parts = [
        "# Copy to .env and set what differs. Shown are the defaults.\n"
        "# Written by docs/generate.py; docs/configuration.md says the same as a table.\n"
    ]
    for name, field in Settings.model_fields.items():
        if name in GROUPS:
            parts.append(f"\n# --- {GROUPS[name]} ---\n")
        parts.append(f"\n# {field.description}\n")
        parts.append(f"#{variables(name, field)[0]}={default_text(field)}\n")
    return "".join(parts)


PAGES = {HERE / "configuration.md": configuration, HERE.parent / ".env.example": example}


if __name__ == "__main__":
    for path, text in PAGES.items():
        path.write_text(text(), encoding="utf-8")
        sys.stdout.write(f"wrote {path}\n")
