"""Write the tables of docs/faults.md from the lines that the soak has written.

    python -m tests.adversary.report faults-*.jsonl

The page keeps its text; what is between the two comments is replaced.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "web")]

from attacks import ATTACKS  # noqa: E402
from engine_servers import NAMES  # noqa: E402
from world import Result  # noqa: E402

PAGE = FOLDER.parents[1] / "docs" / "faults.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


def read(paths: Iterable[Path]) -> list[Result]:
    """Return the results in files of the soak, in order."""
    return [
        msgspec.json.decode(line, type=Result)
        for path in paths
        for line in path.read_bytes().splitlines()
    ]


def tables(results: Sequence[Result]) -> str:
    """Return the Markdown of the tables."""
    return "\n".join([*_engines(results), "", *_faults(results), ""])


def _engines(results: Sequence[Result]) -> list[str]:
    lines = ["| engine | faults | broke a guarantee | events shown | lost by the engine | seeds |"]
    lines.append("|---|---|---|---|---|---|")
    for engine in NAMES:
        found = [one for one in results if one.engine == engine]
        if not found:
            continue
        broken = sum(bool(one.faults) for one in found)
        seeds = Counter(one.seed for one in found)
        named = ", ".join(f"{seed} ({count})" for seed, count in seeds.items())
        shown, lost = sum(one.shown for one in found), sum(one.lost for one in found)
        lines.append(f"| {engine} | {len(found)} | {broken} | {shown:,} | {lost} | {named} |")
    return lines


def _faults(results: Sequence[Result]) -> list[str]:
    cells: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for one in results:
        cells[one.fault, one.engine].append(one)
    lines = [
        "| fault | engine | runs | pages saw | live again | lost by the engine, reported as |",
        "|---|---|---|---|---|---|",
    ]
    for fault in ATTACKS:
        lines += [
            _row(fault, engine, cells[fault, engine])
            for engine in NAMES
            if (fault, engine) in cells
        ]
    return lines


def _row(fault: str, engine: str, found: Sequence[Result]) -> str:
    told = _sum(one.reconnected for one in found), _sum(one.degraded for one in found)
    names = ("reconnecting", "degraded")
    said = [name for name, counts in zip(names, told, strict=True) if sum(counts.values())]
    live = [seconds for one in found for seconds in one.live_seconds.values()]
    # A kind of watcher counts as late if one of it was.
    late = sum(seconds < 0 for seconds in live)
    parts = [f"≤ {max(live):.1f} s"] if late < len(live) else []
    times = ", ".join(parts + ([f"{late} kinds not in time"] if late else []))
    lost = sum(one.lost for one in found)
    reasons = {
        reason
        for one in found
        for kind in ("native", "sse", "python", "js")
        for reason in one.told.get(kind, ())
        if reason != "new"
    }
    how = ", ".join(f"`{reason}`" for reason in sorted(reasons)) or "–"
    return (
        f"| `{fault}` | {engine} | {len(found)} | {', '.join(said) or '–'} | {times} | "
        f"{lost}{': ' if reasons else ''}{how if reasons else ''} |"
    )


def _sum(counts: Iterable[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return total


def page(text: str, results: Sequence[Result]) -> str:
    """Return the page with new tables."""
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    return f"{head}{BEGIN}\n\n{tables(results)}\n{END}{tail}"


def main(arguments: Sequence[Any]) -> None:
    results = read(map(Path, arguments))
    PAGE.write_text(page(PAGE.read_text(), results))


if __name__ == "__main__":
    main(sys.argv[1:])
