"""A missed target is in the table and the JSON, and fails a full run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.measurement import DeliveryErrors, Measurement
from benchmarks.report import Report, Row, make_row


def at(rate: float) -> list[Measurement]:
    return [Measurement(int(rate), 1.0, DeliveryErrors())]


def busy_job(ratio: float) -> Row:
    return make_row("valkey", "one job", at(1000 * ratio), at(1000), target_ratio=0.7)


def progress(microseconds: float) -> Row:
    return make_row("memory", "job.progress()", at(1e6 / microseconds), target_microseconds=5)


@pytest.mark.parametrize(
    ("row", "cell", "sentence"),
    [
        (
            busy_job(0.61),
            "below target 0.7",
            "publish: one job with valkey reaches 0.61 of its yardstick; the target is 0.7\n",
        ),
        (
            progress(8),
            "above target 5 µs",
            "publish: job.progress() with memory takes 8 µs per event; "
            "the target is less than 5 µs\n",
        ),
    ],
)
def test_a_missed_target_is_marked_and_fails_a_full_run_that_names_the_row(
    row: Row, cell: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report("publish")
    report.rows = [busy_job(0.9), row]
    file = tmp_path / "report.json"
    assert report.finish(file, quick=False) == 1
    shown = capsys.readouterr()
    assert shown.out.count(cell) == 1
    assert shown.err == sentence
    assert [each["is_met"] for each in json.loads(file.read_text())["rows"]] == [True, False]

    assert report.finish(None, quick=True) == 0
    shown = capsys.readouterr()
    assert cell in shown.out
    assert shown.err == ""


def test_a_full_run_passes_when_every_target_is_met(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report("publish")
    yardstick = make_row("valkey", "bare XADD", at(1000))
    report.rows = [yardstick, busy_job(0.7), progress(4.9)]
    file = tmp_path / "report.json"
    assert report.finish(file, quick=False) == 0
    shown = capsys.readouterr()
    assert "≥ 0.7" in shown.out
    assert "< 5 µs" in shown.out
    assert shown.err == ""
    assert [row["is_met"] for row in json.loads(file.read_text())["rows"]] == [None, True, True]
