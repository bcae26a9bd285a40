"""``celery realtime``: shows whether this application's tasks are mirrored, and where to.

Celery imports this module before a worker starts. The import installs the
tracker, so an application is mirrored without a change.
"""

from __future__ import annotations

import click

from semantik_realtime.config import load_settings
from semantik_realtime.errors import ConfigError
from semantik_realtime.urls import mask_text, mask_urls
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
    click.echo(f"backend  {mask_text(settings.backend)}")
    click.echo(f"url      {mask_urls(settings.url) if settings.url else 'default'}")
