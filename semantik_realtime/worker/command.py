"""``celery realtime``: shows whether this application's tasks are mirrored, and where to.

Celery imports this module before a worker starts. The import installs the
tracker, so an application is mirrored without a change.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import click

from semantik_realtime.config import load_settings
from semantik_realtime.errors import ConfigError
from semantik_realtime.worker.tracker import install

install()


@click.command(name="realtime")
def realtime() -> None:
    """Show whether tasks are mirrored as live job updates, and where to."""
    try:
        settings = load_settings()
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"mirror   {'on' if settings.mirror else 'off'}")
    click.echo(f"backend  {settings.backend}")
    click.echo(f"url      {hide_password(settings.url) if settings.url else 'default'}")


def hide_password(url: str) -> str:
    """Return ``url`` without its credentials and options.

    >>> hide_password("redis://:secret@cache:6379/0?password=secret")
    'redis://cache:6379/0'
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
