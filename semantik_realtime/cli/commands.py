"""The commands of ``semantik-realtime``; each one imports its module only when it runs."""

from __future__ import annotations

import sys
from typing import Any

import click

from semantik_realtime import __version__
from semantik_realtime.cli.sink_commands import sinks
from semantik_realtime.cli.terminal import visible
from semantik_realtime.errors import RealtimeError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="semantik-realtime")
def cli() -> None:
    """Live job updates for Celery and FastAPI."""


@cli.command()
@click.argument("folder", default=".", type=click.Path(exists=True, file_okay=False))
@click.option("--once", is_flag=True, help="Index FOLDER, show the progress here, and exit.")
@click.option("--port", type=int, help="Port of the web server; default 8000, or a free one.")
@click.option("--workers", default=2, show_default=True, help="Processes of the Celery worker.")
@click.option(
    "--pause",
    type=float,
    help="Seconds to wait after each document; default: such that a job over more than one "
    "document lasts about 20 s, and 0 with --once.",
)
@click.option("--data", type=click.Path(file_okay=False), help="Keep users, jobs and indexes here.")
@click.option(
    "--backend",
    type=click.Choice(["redis", "nats"]),
    default="redis",
    show_default=True,
    help="Engine of the live updates; nats needs semantik-realtime-nats[demo].",
)
def demo(**options: Any) -> None:
    """Index the documents in FOLDER with real workers, live in the browser.

    Starts a Valkey server, a Celery worker and a web server on this machine,
    with nats also a NATS server, and stops them on Ctrl-C. FOLDER is the
    current directory by default.
    """
    from semantik_realtime.cli.demo import Options, run_demo

    sys.exit(run_demo(Options(**options)))


@cli.command()
@click.option("-A", "--app", required=True, help="The Celery application, as celery -A names it.")
@click.option("--port", type=int, help="Port of the page; default 8000, or a free one.")
def serve(app: str, port: int | None) -> None:
    """Show the tasks of an existing Celery application live in the browser.

    For development: whoever is at this machine sees every task, and nobody
    else. The tasks are those that its workers receive from now on, run by
    workers with this package and with the same SEMANTIK_REALTIME_URL.
    """
    from semantik_realtime.cli.serve import run_serve

    sys.exit(run_serve(app, port))


@cli.command()
@click.argument("job")
@click.option(
    "--url",
    default="ws://127.0.0.1:8000/realtime/ws",
    show_default=True,
    envvar="SEMANTIK_REALTIME_WS",
    help="Of the web server (http://host:port/prefix) or of its WebSocket; "
    "also from SEMANTIK_REALTIME_WS.",
)
@click.option(
    "--token",
    envvar="SEMANTIK_REALTIME_TOKEN",
    help="Credential (a JWT); safer in SEMANTIK_REALTIME_TOKEN than on the command line.",
)
@click.option("--json", "as_json", is_flag=True, help="Print each event as one line of JSON.")
def watch(job: str, url: str, token: str | None, as_json: bool) -> None:
    """Follow JOB (an id, or a topic) until it ends. Exits with 0 if it completed, else with 1."""
    from semantik_realtime.cli.watch import run_watch

    sys.exit(run_watch(job, url, token, as_json=as_json))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def doctor(as_json: bool) -> None:
    """Check the settings, the backend's server and the plugins. Exits with 1 if a check fails."""
    from semantik_realtime.cli.doctor import run_doctor

    sys.exit(run_doctor(as_json=as_json))


@cli.command()
@click.argument("url", default="http://127.0.0.1:8000")
@click.option(
    "--token",
    envvar="SEMANTIK_REALTIME_TOKEN",
    help="Credential of the user who watches (a JWT), also from SEMANTIK_REALTIME_TOKEN; without "
    "it one is signed with SEMANTIK_REALTIME_JWT_SECRET.",
)
@click.option("--seconds", type=click.FloatRange(1, 300), default=20.0, show_default=True)
@click.option(
    "--rate",
    type=click.FloatRange(1, 500),
    default=50.0,
    show_default=True,
    help="Events a second.",
)
@click.option(
    "--watchers",
    type=click.IntRange(1, 8),
    default=3,
    show_default=True,
    help="WebSockets to break.",
)
@click.option("--seed", type=int, help="Of a run to repeat; by default a random one.")
@click.option("--job", help="Id of a job that does not exist, for a host that knows its ids.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def verify(**options: Any) -> None:
    """Test the updates of the web server at URL, through everything that is in front of it.

    Publishes the events of a job as a worker does, with the web server's
    settings, and watches it over WebSockets, an event stream and REST, while
    it breaks the connections. Reports for each guarantee whether it held.
    Exits with 1 if one did not. The job is deleted at the end.
    """
    from semantik_realtime.cli.verify import Options, run_verify

    sys.exit(run_verify(Options(**options)))


@cli.command()
@click.argument("topic")
@click.argument("type")
@click.option("--data", default="{}", help="The event's data, a JSON object.")
@click.option(
    "--state",
    help="The whole state after the event, a JSON object; null removes it. On a job's topic the "
    "status follows from a TYPE such as job_failed.",
)
@click.option("--owner", help="Owner of the topic, if the topic is new.")
@click.option(
    "--attempt",
    metavar="NUMBER|new",
    help="The attempt of the job that the event belongs to; by default the newest. new begins the "
    "next one, for example after the end of the last.",
)
def publish(topic: str, type: str, **options: str | None) -> None:
    """Append one event of TYPE to TOPIC, through the configured backend."""
    from semantik_realtime.cli.publish import run_publish

    click.echo(visible(run_publish(topic, type, **options)))


@cli.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--once", is_flag=True, help="Copy and compare once. Exits with 1 if topics differ.")
@click.option(
    "--switch",
    is_flag=True,
    help="Copy, close FROM, copy the rest, compare, and open TO. Then restart the processes with "
    "the new address.",
)
@click.option("--reopen", is_flag=True, help="Open FROM again, after a --switch that failed.")
@click.option(
    "--stopped",
    is_flag=True,
    help="Everything that writes to FROM has been stopped. Needed for a Redis cluster, which "
    "cannot be closed.",
)
@click.option(
    "--restart-seconds",
    type=click.FloatRange(1, 7 * 86400),
    default=3600.0,
    show_default=True,
    help="How long the restart of a worker may take before its jobs count as lost.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def migrate(source: str, target: str, **options: Any) -> None:
    """Move the live topics at the URL FROM to the URL TO, with their cursors.

    Copies all topics, and then what is new, until Ctrl-C: writers and watchers
    go on with FROM. All other settings come from the environment, and are
    those of both. Can be stopped at any time, and run again.
    """
    from semantik_realtime.cli.migrate import Options, run_migrate

    sys.exit(run_migrate(source, target, Options(**options)))


@cli.command()
@click.argument("modules", nargs=-1, required=True)
def types(modules: tuple[str, ...]) -> None:
    """Print the JSON Schema of the event types that MODULES declare with `event`.

    Each member of the schema's object is the data of the type with its name.
    """
    from semantik_realtime.cli.types import run_types

    click.echo(run_types(modules))


cli.add_command(sinks)


def main() -> None:
    """Run the console script; a `RealtimeError` is printed as a sentence, without a traceback."""
    try:
        cli()
    except RealtimeError as error:
        # Its text may be a server's.
        sys.exit(f"semantik-realtime: {visible(error, keep=chr(10))}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package.startswith("semantik_realtime"):
            raise
        extra = {"demo": "demo", "serve": "celery,fastapi,uvicorn"}.get(
            "".join(sys.argv[1:2]), "cli"
        )
        sys.exit(
            f"semantik-realtime: {package} is missing: pip install 'semantik-realtime[{extra}]'"
        )
