"""How many events one web process sends to many sockets, beside one frame per event.

::

    python -m benchmarks.fanout --backends valkey --sockets 500 --json fanout.json

Every socket watches the same topic. The yardstick is the same server with a wire that encodes
and sends each event in its own frame (`benchmarks.contenders.ours`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks import options
from benchmarks.broker import server_url
from benchmarks.burst import Pace
from benchmarks.client_processes import follow_burst
from benchmarks.contenders.ours import Ours
from benchmarks.harness import run_burst
from benchmarks.measurement import Measurement
from benchmarks.output import RunProgress
from benchmarks.report import Report, make_row

ROWS = ("one frame per event", "one frame per batch")
TARGET_RATIO = 5.0


@click.command()
@options.backends("memory", "valkey")
@options.number("sockets", 500, 1, "That watch one topic.")
@options.number("events", 20_000, 1, "Published in a round.")
@options.number("rounds", 3, 1, "Of each row.")
@options.seconds(48.0, "Of publishing, over all rows, without starting and stopping servers.")
@options.window
@options.quick
@options.lose
@options.json_file
def main(
    backends: Sequence[str],
    sockets: int,
    events: int,
    rounds: int,
    seconds: float,
    window: int,
    quick: bool,
    lose: int,
    json_file: Path | None,
) -> None:
    """Publish one topic to many sockets.

    Fails if an event is lost, doubled or disordered, or the target is missed.
    """
    if quick:
        sockets, events, rounds, seconds = min(sockets, 20), min(events, 400), 1, min(seconds, 8.0)
    count = len(backends) * rounds * len(ROWS)
    pace = Pace(events, seconds / count, window=window, lose=lose)
    target = TARGET_RATIO if window >= options.TARGET_WINDOW else None
    report = Report("fanout")
    with RunProgress(count) as progress:
        for backend in backends:
            measured: dict[str, list[Measurement]] = {name: [] for name in ROWS}
            with server_url(backend) as url:
                for turn in range(1, rounds + 1):
                    for name in ROWS:
                        with progress.step(f"{backend}, {name}, round {turn} of {rounds}"):
                            ours = Ours(backend, one_frame_per_event=name == ROWS[0])
                            measured[name].append(run_burst(ours, url, pace, follow_burst, sockets))
            alone, together = measured.values()
            report.rows += [
                make_row(backend, ROWS[0], alone),
                make_row(backend, ROWS[1], together, alone, target_ratio=target),
            ]
    sys.exit(report.finish(json_file, quick))


if __name__ == "__main__":
    main()
