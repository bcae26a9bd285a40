"""Write docs/configuration.md and .env.example from the fields of ``Settings``.

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

Every setting is an environment variable, and also an argument:
`Settings(backend="memory", retention_events=200)`. A wrong value is refused at start with a
message that names the variable, and a variable that is no setting, because it is misspelt, is
logged at start and reported by `semantik-realtime doctor`. The package reads no file: whatever
starts a process loads a `.env` into its environment. [`.env.example`](../.env.example) lists all
settings with their defaults.

The settings of the NATS backend, `SEMANTIK_REALTIME_NATS_*`, are in
[its README](../plugins/semantik-realtime-nats/README.md#settings).
"""


def variables(name: str, field: FieldInfo) -> list[str]:
    """Return the environment variables of a setting, in the order of precedence."""
    alias = field.validation_alias
    if alias is None:
        return [PREFIX + name.upper()]
    return [str(choice) for choice in alias.choices]  # type: ignore[union-attr]


def default_text(field: FieldInfo) -> str:
    """Return a default as an environment variable would have it; empty if there is none."""
    value = field.default
    if value is None or isinstance(value, SecretStr):
        return ""
    if isinstance(value, list):
        return ",".join(value)
    if isinstance(value, dict):
        return ",".join(f"{theirs}={ours}" for theirs, ours in value.items())
    if isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def configuration() -> str:
    """Return the text of configuration.md."""
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
    """Return the text of .env.example: every setting as a comment, with its default."""
    parts = [
        "# No file is read. Load it yourself: Compose env_file, uvicorn --env-file, `. ./.env`.\n"
        "# Copy to .env, and set the values that differ from these defaults.\n"
        "# Written by docs/generate.py; docs/configuration.md has the same as a table.\n"
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
