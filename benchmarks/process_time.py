"""The processor time of a process and of those that it has started."""

from __future__ import annotations

import os
from pathlib import Path


def tree_seconds(pid: int) -> float:
    """Return the processor time that a process and its descendants have used so far, in seconds.

    Those that have ended count if their parent has waited for them. The kernel counts in
    hundredths of a second.

    Raises:
        OSError: there is no such process, or no /proc.
    """
    ticks = 0
    children: dict[int, list[int]] = {}
    times: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.name))
        times[int(entry.name)] = sum(int(field) for field in fields[11:15])
    if pid not in times:
        raise ProcessLookupError(f"no process {pid}, or no /proc")
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        ticks += times[one]
        waiting += children.get(one, [])
    return ticks / os.sysconf("SC_CLK_TCK")
