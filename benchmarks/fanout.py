"""How many events one web process hands to many sockets, beside one frame an event.

::

    python -m benchmarks.fanout --backends valkey --sockets 500 --json fanout.json

Every socket watches the same topic. The yardstick is the same server with a
wire that encodes and sends each event by itself (`benchmarks.contenders.ours`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks import options
from benchmarks.broker import server_url
from benchmarks.burst import Pace
from benchmarks.contenders.ours import Ours
from benchmarks.following import follow
from benchmarks.report import Measurement, Report, make_row
from benchmarks.stage import play


@click.command()
@options.backends("memory", "valkey")
@options.number("sockets", 500, 1, "That watch one topic.")
@options.number("events", 20_000, 1, "Published in a round.")
@options.number("rounds", 3, 1, "Of each row.")
@options.seconds(48.0, "Of publishing, over all rows; starting and ending servers comes on top.")
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
    """Publish one topic to many sockets. Fails if an event goes astray or the target is missed."""
    if quick:
        sockets, events, rounds, seconds = min(sockets, 20), min(events, 400), 1, min(seconds, 8.0)
    pace = Pace(events, seconds / (len(backends) * rounds * 2), window=window, lose=lose)
    target = 5 if window >= options.TARGET_WINDOW else None
    with Report("fanout") as report:
        for backend in backends:
            alone: list[Measurement] = []
            together: list[Measurement] = []
            with server_url(backend) as url:
                for turn in range(1, rounds + 1):
                    for kept, one_frame_an_event in ((alone, True), (together, False)):
                        what = "one frame an event" if one_frame_an_event else "whatever waits"
                        report.says(f"{backend}, {what}, round {turn} of {rounds}")
                        ours = Ours(backend, one_frame_an_event)
                        kept.append(play(ours, url, pace, follow, sockets))
            report.rows += [
                make_row(backend, "one frame an event", alone),
                make_row(backend, "all that waits in one", together, alone, target_ratio=target),
            ]
    sys.exit(report.finish(json_file, quick))


if __name__ == "__main__":
    main()
