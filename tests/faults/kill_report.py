"""What happened in a run of kills, as a table."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from end_watcher import EndWatcher, Shown
from fleet import Kill
from job_oracle import Story, left_by_broker

KINDS = ("task", "process", "main", "worker", "backend")


def shown_by_all(
    job: str, after: float, is_it: object, watchers: Sequence[EndWatcher]
) -> float | None:
    """Return when the last watcher showed what ``is_it`` accepts, after ``after``; None: never."""
    assert callable(is_it)
    times = []
    for watcher in watchers:
        found = [one.at for one in watcher.shown.get(job, ()) if one.at > after and is_it(one)]
        if not found:
            return None
        times.append(found[0])
    return max(times)


def waits(
    kill: Kill, stories: Mapping[str, Story], watchers: Sequence[EndWatcher]
) -> Iterator[tuple[float, float | None]]:
    """Yield for each attempt that ``kill`` hit how many seconds later every page showed its end,
    and that of its job.

    An attempt ends at the latest when the next one begins. Of the backend the seconds are those
    after its return, for tasks that ended while it was away.
    """
    for job, story in stories.items():
        if kill.kind == "backend":
            ends = [one for one in story.notes if one.what == "end"]
            hit = [one.at for one in ends if kill.at <= one.at <= kill.returned_at]
        else:
            hit = [
                kill.at
                for one in story.begins
                if one.pid in kill.pids and one.at < kill.at and story.end_of(one) is None
            ]
        for at in hit:
            before = shown_before(job, at, watchers)

            def ends_it(shown: Shown, before: int = before) -> bool:
                return shown.is_end or shown.status == "retrying" or shown.attempt > before

            attempt = shown_by_all(job, at, ends_it, watchers)
            whole = shown_by_all(job, at, lambda one: one.is_end, watchers)
            since = kill.returned_at
            if attempt is not None:
                yield max(0.0, attempt - since), None if whole is None else max(0.0, whole - since)


def shown_before(job: str, at: float, watchers: Sequence[EndWatcher]) -> int:
    """Return the newest attempt that a watcher had shown at that time."""
    return max(
        (one.attempt for each in watchers for one in each.shown.get(job, ()) if one.at <= at),
        default=0,
    )


def table(
    kills: Sequence[Kill],
    stories: Mapping[str, Story],
    watchers: Sequence[EndWatcher],
    killed: set[int],
) -> str:
    """Return the table: what was killed, what that hit, and how the jobs ended."""
    lines = [
        "killed   times  attempts  seconds until its end is shown  until that of the job",
        "                hit       median   max                    median   max",
    ]
    for kind in KINDS:
        of_kind = [kill for kill in kills if kill.kind == kind]
        found = [wait for kill in of_kind for wait in waits(kill, stories, watchers)]
        attempt = _figures([first for first, _ in found])
        job = _figures([last for _, last in found if last is not None])
        lines.append(f"{kind:8} {len(of_kind):5}  {len(found):8}  {attempt:30}  {job}")
    endings = Counter(_ending(story, killed) for story in stories.values())
    lines += ["", "jobs that ended as"]
    lines += [f"{count:6}  {ending}" for ending, count in endings.most_common()]
    return "\n".join(lines)


def _figures(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    return f"{statistics.median(seconds):6.1f}   {max(seconds):5.1f}"


def _ending(story: Story, killed: set[int]) -> str:
    if not story.events:
        return "no event"
    last = story.events[-1]
    error = (last["state"].get("error") or {}).get("type")
    left = left_by_broker(story, killed, loses_messages=True)
    reason = last.get("data", {}).get("reason") if last["type"] == "job_lost" else None
    details = [one for one in (error, reason, left and f"message gone, {left}") if one]
    return " · ".join([last["type"], *details])
