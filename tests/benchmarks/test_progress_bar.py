"""A long run shows how far it is."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from rich.console import Console

from benchmarks import compare
from benchmarks.contender import Contender
from benchmarks.contenders.ours import Ours
from benchmarks.measurement import DeliveryErrors, Measurement, MeasurementFailed
from benchmarks.output import RunProgress
from benchmarks.scenarios import SCENARIOS, Sizes


@pytest.fixture
def terminal() -> Console:
    """A terminal that keeps what is drawn on it."""
    return Console(file=StringIO(), force_terminal=True, color_system=None, width=120)


def drawn(terminal: Console) -> list[tuple[int, int, str]]:
    """Each different state of the bar: the count, the total, and the current measurement."""
    text = terminal.file.getvalue()  # type: ignore[attr-defined]
    states = re.findall(r"(\d+)/(\d+) \S+ (.*?) *(?:[\r\n\x1b]|$)", text)
    return list(dict.fromkeys((int(count), int(total), what) for count, total, what in states))


def test_a_comparison_counts_its_measurements_and_names_the_current_one(
    terminal: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fast(contender: Contender, sizes: Sizes) -> Measurement:
        return Measurement(10, 1.0, DeliveryErrors(), {"events_asked": 10})

    def failing(contender: Contender, sizes: Sizes) -> Measurement:
        raise MeasurementFailed("the clients could not join")

    monkeypatch.setitem(SCENARIOS, "publish", fast)
    monkeypatch.setitem(SCENARIOS, "fanout", failing)
    contenders = [Ours("memory"), Ours("valkey")]
    progress = RunProgress(4, terminal)
    rows = compare.measure_all(["publish", "fanout"], contenders, Sizes(), progress)
    assert [row.failure is None for row in rows] == [True, True, False, False]
    assert [state for state in drawn(terminal) if state[2]] == [
        (0, 4, "publish: semantik-realtime, memory"),
        (1, 4, "publish: semantik-realtime, valkey"),
        (2, 4, "fanout: semantik-realtime, memory"),
        (3, 4, "fanout: semantik-realtime, valkey"),
        (4, 4, "fanout: semantik-realtime, valkey"),
    ]


def test_the_bar_is_on_the_standard_error_so_that_the_tables_can_be_piped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with RunProgress(1) as progress, progress.step("publish: memory"):
        pass
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "publish: memory" in shown.err


def test_a_measurement_that_raises_is_not_counted(terminal: Console) -> None:
    progress = RunProgress(2, terminal)
    with pytest.raises(KeyboardInterrupt), progress, progress.step("publish: memory"):
        raise KeyboardInterrupt
    assert {state[0] for state in drawn(terminal)} == {0}
