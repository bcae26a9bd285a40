"""Random faults for as long as asked, from a seed that replays their order and their choices.

    python -m tests.adversary.soak --engine redis --seconds 60 --seed 7 --out faults.jsonl

Each fault is one line of JSON (`world.Result`). The exit code is 1 if a guarantee was broken.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from pathlib import Path

import click
import msgspec

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "web")]

from attacks import ATTACKS, names_for  # noqa: E402
from engine_servers import NAMES  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn  # noqa: E402
from rich.progress import TimeElapsedColumn as Elapsed  # noqa: E402
from world import Result, running_world  # noqa: E402

from semantik_realtime.testing.servers import ROWS  # noqa: E402


def schedule(engine: str, seed: int, only: tuple[str, ...] = ()) -> list[str]:
    """Return one round of faults in the seed's order: each fault of the engine once."""
    names = [name for name in names_for(engine) if not only or name in only]
    random.Random(seed).shuffle(names)
    return names


async def soak(
    engine: str, seed: int, seconds: float, faults: int, only: tuple[str, ...], out: Path | None
) -> list[Result]:
    """Run faults until the time or the number is over; return what each did."""
    results: list[Result] = []
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Elapsed())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(f"{engine} seed {seed}", total=faults or None)
        async with running_world(engine, seed) as world:
            deadline = time.monotonic() + seconds
            names: list[str] = []
            while time.monotonic() < deadline and (not faults or len(results) < faults):
                names = names or schedule(engine, seed + len(results), only)
                name = names.pop(0)
                progress.update(bar, description=f"{engine} seed {seed}: {name}")
                one = ATTACKS[name]
                result = await world.run(name, one.run, one.bound_seconds)
                results.append(result)
                line = msgspec.json.encode(result)
                if out is not None:
                    with out.open("ab") as file:
                        file.write(line + b"\n")
                else:
                    print(line.decode(), flush=True)
                for fault in result.faults:
                    console.print(f"#{result.number} {name}: {fault}", markup=False)
                progress.advance(bar)
    return results


@click.command()
@click.option("--engine", type=click.Choice(NAMES), default="valkey")
@click.option("--seconds", type=float, default=60.0, help="No fault begins after it.")
@click.option("--faults", type=int, default=0, help="At most so many; 0: no limit.")
@click.option("--seed", type=int, default=None, help="Default: a new one, which is printed.")
@click.option("--only", multiple=True, help="Only this fault; may be given several times.")
@click.option("--out", type=click.Path(path_type=Path), help="Append the lines to a file.")
def main(
    engine: str,
    seconds: float,
    faults: int,
    seed: int | None,
    only: tuple[str, ...],
    out: Path | None,
) -> None:
    if seed is None:
        seed = int.from_bytes(os.urandom(3))
    click.echo(f"seed {seed}", err=True)
    os.environ.update(ROWS[engine].environment)
    results = asyncio.run(soak(engine, seed, seconds, faults, only, out))
    broken = [result for result in results if result.faults]
    lost = sum(result.lost for result in results)
    click.echo(
        f"{engine}: {len(results)} faults, {len(broken)} broke a guarantee, the engine lost "
        f"{lost} events; replay: --engine {engine} --seed {seed} --faults {len(results)}",
        err=True,
    )
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
