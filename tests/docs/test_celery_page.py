"""The tables of docs/celery.md are complete, and each row names a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "celery.md").read_text()
COLUMNS = ["what happens", "what Celery signals", "what a watcher sees", "test"]
TABLES = ("### Tasks", "### Workers, workflows and other pools")
CASES = [
    *("returns", "raises", "retries", "autoretry", "replaces itself by a task", "`Ignore`"),
    *("`Reject`", "requeue", "soft time limit", "hard time limit", "os._exit", "acks_late"),
    *("sys.exit", "terminate", "revoked while it is queued", "expires", "no worker knows"),
    *("cannot terminate", "publication comes after its start", "SIGQUIT", "by a chain"),
    *("by a chord", "by a group", "step of a chain fails", "member of a chord fails"),
    *("main process", "longer than the retention", "cannot be read", "purged"),
    *("chunks", "publishes others", "greenlet is terminated", "waits for its ETA", "hangs"),
]
"""Words of the cases in which Celery itself is not obvious; each has its row."""
FILES = ["test_workers", "test_worker_stops", "test_green_pools"]
"""Tests with real workers: what they say of a task's end is a row, or tested elsewhere too."""


def rows(heading: str) -> list[list[str]]:
    table = PAGE.split(f"\n{heading}\n")[1].split("\n#")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def all_rows() -> list[list[str]]:
    return [row for heading in TABLES for row in rows(heading)[2:]]


@pytest.mark.parametrize("heading", TABLES)
def test_each_row_has_every_cell(heading: str) -> None:
    header, _, *body = rows(heading)
    assert header == COLUMNS
    assert len(body) >= 12
    for row in body:
        assert len(row) == len(COLUMNS), row
        assert all(row), row


@pytest.mark.parametrize("case", CASES)
def test_each_case_has_its_row(case: str) -> None:
    assert any(case in row[0] for row in all_rows())


@pytest.mark.parametrize("named", sorted({row[-1] for row in all_rows()}))
def test_each_named_test_exists(named: str) -> None:
    found = re.fullmatch(r"`([\w/]+\.py)::(test_\w+)`", named)
    assert found, named
    tree = ast.parse((ROOT / found[1]).read_text())
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    assert found[2] in {node.name for node in ast.walk(tree) if isinstance(node, functions)}


@pytest.mark.parametrize("file", FILES)
def test_each_test_of_how_a_job_ends_is_named(file: str) -> None:
    tests = re.findall(r"^def (test_\w+)", (ROOT / f"tests/worker/{file}.py").read_text(), re.M)
    ends = re.compile(
        r"(fails|cancels|completes|continues|ends)_(its|the|with)\w*job|_ends_with_its"
    )
    found = [name for name in tests if ends.search(name)]
    assert found
    assert not [name for name in found if f"{file}.py::{name}`" not in PAGE and name not in OTHERS]


OTHERS = {
    "test_a_task_that_the_worker_does_not_know_fails_its_job",
    "test_a_process_killed_in_an_outage_fails_its_job_and_no_later_event_reopens_it",
    "test_a_greenlet_that_computes_is_terminated_when_it_yields_and_its_job_ends_once",
    "test_a_warm_stop_of_greenlets_sends_the_ends_of_their_jobs",
    "test_an_exception_that_cannot_be_pickled_keeps_its_name",
}
"""Tests of a case that has another row, or of an outage."""
