"""``semantik-realtime sinks``: the queues and dead letters of an application's sinks."""

from __future__ import annotations

import sys

import click


@click.group()
def sinks() -> None:
    """Look at the queues of sinks, replay dead letters, run sinks."""


@sinks.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print each sink as one line of JSON.")
def list_sinks(as_json: bool) -> None:
    """Print the sinks that are recorded, with their queues. Exits with 1 if one has lost events."""
    from semantik_realtime.cli.sinks import run_list

    sys.exit(run_list(as_json=as_json))


@sinks.command()
@click.argument("name")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print each dead letter as one line of JSON.")
def dead(name: str, limit: int, as_json: bool) -> None:
    """Print the dead letters of the sink NAME, the oldest first."""
    from semantik_realtime.cli.sinks import run_dead

    run_dead(name, limit, as_json=as_json)


@sinks.command()
@click.argument("name")
@click.argument("ids", nargs=-1)
def replay(name: str, ids: tuple[str, ...]) -> None:
    """Put dead letters of the sink NAME into its queue again: those with IDS, or all."""
    from semantik_realtime.cli.sinks import run_replay

    click.echo(run_replay(name, ids))


@sinks.command()
@click.argument("name")
@click.argument("ids", nargs=-1)
@click.option("--all", "is_all", is_flag=True, help="All of them, instead of IDS.")
def discard(name: str, ids: tuple[str, ...], is_all: bool) -> None:
    """Remove dead letters of the sink NAME."""
    from semantik_realtime.cli.sinks import run_discard

    if bool(ids) == is_all:
        raise click.UsageError("give the ids of dead letters, or --all")
    click.echo(run_discard(name, ids))


@sinks.command()
@click.argument("name")
def forget(name: str) -> None:
    """Remove the sink NAME with its queue and its dead letters.

    A server that still has it records it again.
    """
    from semantik_realtime.cli.sinks import run_forget

    click.echo(run_forget(name))


@sinks.command()
@click.argument("app", metavar="MODULE:NAME")
def run(app: str) -> None:
    """Run the sinks of MODULE:NAME until SIGTERM: a Realtime, or an application that has one.

    Web servers run them too, unless SEMANTIK_REALTIME_RUN_SINKS=false.
    """
    from semantik_realtime.cli.sinks import run_sinks

    run_sinks(app)
