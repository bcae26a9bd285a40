"""The processor time and the memory of processes."""

from __future__ import annotations

import os
from pathlib import Path


def process_seconds(pid: int) -> float | None:
    """Return the processor time that a process has used so far, in seconds; None without a /proc.

    The kernel counts in hundredths of a second.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid: int) -> int | None:
    """Return the resident memory of a process; None without a /proc."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


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
