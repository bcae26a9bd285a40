"""The command ``semantik-realtime``."""

from semantik_realtime.cli.commands import cli, main

__all__ = ["cli", "main"]
