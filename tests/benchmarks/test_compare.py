"""The comparison runs, reports what it measured, and fails if an event of ours goes astray."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from benchmarks.comparison import (
    TARGETS,
    Row,
    encode,
    missed_texts,
    passes,
    set_ratios,
    set_targets,
    show,
)
from benchmarks.contender import PEERS, load_peer
from benchmarks.machine import describe_machine
from semantik_realtime.backends.loader import backend_names
from semantik_realtime.testing.servers import ServerMissing, valkey_program

ROOT = Path(__file__).parents[2]
SECONDS = 240
# Any test may be the one that makes the run which several share.
pytestmark = pytest.mark.timeout(SECONDS)
ROW = {
    "scenario": "fanout",
    "contender": "semantik-realtime",
    "broker": "valkey",
    "is_ours": True,
    "events_per_second": 1000.0,
    "sockets": 5,
    "events_asked": 10,
    "events_published": 10,
    "deliveries": 50,
}


@dataclass
class Run:
    """The results of a run."""

    code: int
    table: str
    report: dict[str, Any]
    pictures: list[str]
    """For light and for dark pages."""

    def row(self, scenario: str, contender: str, broker: str) -> dict[str, Any]:
        [found] = [
            row
            for row in self.report["rows"]
            if (row["scenario"], row["contender"], row["broker"]) == (scenario, contender, broker)
        ]
        return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Run a quick comparison with these options."""
    for module in ("socketio", "matplotlib"):
        pytest.importorskip(module, reason=f"{module} is missing: pip install --group benchmarks")
    try:
        valkey_program()
    except ServerMissing as error:
        pytest.skip(str(error))

    def run(*options: str) -> Run:
        directory = tmp_path_factory.mktemp("compare")
        report, picture = directory / "report.json", directory / "plot.svg"
        command = [sys.executable, "-m", "benchmarks.compare", "--quick", *options]
        done = subprocess.run(
            [*command, "--json", str(report), "--plot", str(picture)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SECONDS - 10,
        )
        assert report.exists(), done.stderr
        pictures = [file.read_text() for file in (picture, directory / "plot-dark.svg")]
        return Run(done.returncode, done.stdout, json.loads(report.read_text()), pictures)

    return run


@pytest.fixture(scope="module")
def whole(run: Callable[..., Run]) -> Run:
    """All scenarios, two backends of ours and one peer."""
    return run("--backends", "memory,valkey", "--peers", "broadcaster")


def test_a_quick_run_measures_every_contender_in_every_scenario(whole: Run) -> None:
    assert whole.code == 0, whole.table
    assert [(row["scenario"], row["contender"], row["broker"]) for row in whole.report["rows"]] == [
        (scenario, contender, broker)
        for scenario in ("publish", "fanout", "latency", "catchup")
        for contender, broker in (
            ("semantik-realtime", "memory"),
            ("semantik-realtime", "valkey"),
            ("broadcaster", "valkey"),
        )
    ]
    for row in whole.report["rows"]:
        assert row["failure"] is None
        assert row["events_published"] > 0
        assert (row["events_per_second"] is None) == (row["scenario"] in ("latency", "catchup"))


def test_ours_loses_nothing_and_the_losses_of_a_peer_are_reported(whole: Run) -> None:
    for row in whole.report["rows"]:
        if row["is_ours"]:
            assert (row["lost"], row["doubled"], row["disordered"]) == (0, 0, 0)
            sockets = 1 if row["scenario"] == "publish" else row["sockets"]
            assert row["deliveries"] >= row["events_published"] * sockets
    away = whole.row("catchup", "broadcaster", "valkey")
    assert away["deliveries"] == 0
    assert away["lost"] == away["events_published"] * away["sockets"]
    assert away["milliseconds"] is None


def test_the_report_has_the_documented_members(whole: Run) -> None:
    assert whole.report.keys() == {"machine", "settings", "rows"}
    assert whole.report["machine"]["cpu_count"] > 0
    assert whole.report["machine"]["versions"].keys() >= {"uvicorn", "redis", "broadcaster"}
    assert whole.report["machine"]["web_server"].keys() == {"loop", "websockets"}
    assert whole.report["machine"]["servers"].keys() == {"valkey"}
    assert whole.report["settings"]["window"] == 100
    members = {field.name for field in msgspec.structs.fields(Row)}
    for row in whole.report["rows"]:
        assert row.keys() == members | {"is_finished", "is_met"}
    for contender, broker in (("semantik-realtime", "valkey"), ("broadcaster", "valkey")):
        times = whole.row("latency", contender, broker)["milliseconds"]
        assert 0 < times["p50"] <= times["p95"] <= times["p99"]
    ours = whole.row("fanout", "semantik-realtime", "valkey")
    peer = whole.row("fanout", "broadcaster", "valkey")
    assert ours["ours_ratio"] == 1
    assert peer["ours_ratio"] == pytest.approx(
        ours["events_per_second"] / peer["events_per_second"], abs=0.01
    )


def test_the_pictures_show_every_contender(whole: Run) -> None:
    names = ("semantik-realtime, memory", "semantik-realtime, valkey", "broadcaster")
    for picture in whole.pictures:
        for text in (*names, "100% lost"):
            assert f">{text}</text>" in picture


def test_the_tables_name_every_scenario_and_the_machine(whole: Run) -> None:
    for title in ("publish:", "fan-out:", "latency:", "catch-up:"):
        assert title in whole.table
    machine, settings = whole.report["machine"], whole.report["settings"]
    shown = " ".join(whole.table.split())
    assert machine["python"] in shown
    servers = {f"{name}-server": version for name, version in machine["servers"].items()}
    for name, version in {**machine["versions"], **servers}.items():
        assert f"{name} {version}" in shown
    assert f"sockets {settings['sockets']}, events {settings['events']}" in shown


@pytest.mark.parametrize("backend", ["fakeredis", "redis", "nats"])
def test_ours_loses_nothing_over_the_other_backends(
    run: Callable[..., Run], backend: str, server_url: Callable[[str], str]
) -> None:
    if backend == "nats" and backend not in backend_names():
        pytest.skip("the nats backend is missing: pip install ./plugins/semantik-realtime-nats")
    server_url(backend)
    done = run("--backends", backend, "--peers", "", "--scenarios", "publish,fanout")
    assert done.code == 0
    assert [row["scenario"] for row in done.report["rows"]] == ["publish", "fanout"]
    for row in done.report["rows"]:
        assert row["broker"] == backend
        assert row["failure"] is None
        assert row["deliveries"] == row["events_published"] * row["sockets"] > 0


def test_every_peer_delivers_events(run: Callable[..., Run]) -> None:
    others = [name for name in PEERS if name != "broadcaster"]
    report = run("--backends", "", "--peers", ",".join(others), "--scenarios", "fanout").report
    assert len(report["rows"]) == len(others)
    for row in report["rows"]:
        assert row["failure"] is None
        assert row["deliveries"] > 0


def test_a_run_in_which_ours_loses_events_fails(run: Callable[..., Run]) -> None:
    lossy = run(
        "--backends", "memory", "--peers", "", "--scenarios", "fanout,publish", "--lose", "30"
    )
    assert lossy.code == 1
    for row in lossy.report["rows"]:
        sockets = row["sockets"]
        assert row["lost"] == row["events_published"] // 30 * sockets
        assert (row["doubled"], row["disordered"]) == (0, 0)


def test_a_run_passes_only_if_ours_was_measured_and_has_no_errors() -> None:
    ours, peer = Row(**ROW), Row(**{**ROW, "is_ours": False, "contender": "peer", "lost": 7})
    assert passes([ours, peer])
    assert not passes([])
    for flaw in ({"lost": 1}, {"doubled": 1}, {"disordered": 1}, {"failure": "it ended early"}):
        assert not passes([Row(**{**ROW, **flaw}), peer])


def test_ratios_compare_ours_over_the_default_broker_with_each_row() -> None:
    rows = [
        Row(**{**ROW, "broker": "memory", "events_per_second": 4000.0}),
        Row(**ROW),
        Row(**{**ROW, "is_ours": False, "contender": "peer", "events_per_second": 50.0}),
        Row(**{**ROW, "is_ours": False, "contender": "failed", "events_per_second": None}),
    ]
    set_ratios(rows)
    assert [row.ours_ratio for row in rows] == [0.25, 1.0, 20.0, None]


def beside(contender: str, ours_ratio: float, scenario: str = "fanout") -> Row:
    """Return the row of a peer whose rate is that of ours divided by ``ours_ratio``."""
    rate = {"scenario": scenario, "events_per_second": ROW["events_per_second"] / ours_ratio}
    return Row(**{**ROW, "is_ours": False, "contender": contender, **rate})


def with_targets(*rows: Row) -> list[Row]:
    set_ratios(rows)
    set_targets(rows)
    return list(rows)


def test_a_missed_target_is_marked_and_named_and_fails_the_run_only_with_check() -> None:
    rows = with_targets(
        Row(**ROW),
        beside("python-socketio", 9.5),
        beside("channels", 10.5),
        beside("broadcaster", 6),
        beside("pub/sub connection per socket", 4),
        Row(**{**ROW, "scenario": "publish"}),
        beside("broadcaster", 2, "publish"),
    )
    assert missed_texts(rows) == [
        "fanout: ours over valkey reaches 9.5 times the rate of python-socketio; "
        "the target is 10 times",
        "fanout: ours over valkey reaches 4 times the rate of pub/sub connection per socket; "
        "the target is 5 times",
    ]
    assert passes(rows)
    assert not passes(rows, check=True)
    settings = {"sockets": 5}
    met = [row["is_met"] for row in json.loads(encode({}, settings, rows))["rows"]]
    assert met == [None, False, True, True, False, None, None]
    console = Console(width=200, file=StringIO())
    show(console, describe_machine(), settings, rows)
    table = console.file.getvalue()  # type: ignore[attr-defined]
    assert "9.5 ×, below target 10" in table
    assert "4.0 ×, below target 5" in table
    assert table.count("below target") == 2


def test_a_check_passes_if_targets_are_met_or_cannot_be_compared() -> None:
    assert passes(with_targets(Row(**ROW), beside("broadcaster", 5)), check=True)
    # Only ours over the default broker has targets.
    assert passes(
        with_targets(Row(**{**ROW, "broker": "memory"}), beside("broadcaster", 1)), check=True
    )
    failed = Row(**{**ROW, "is_ours": False, "contender": "broadcaster", "failure": "no port"})
    failed.events_per_second = None
    assert passes(with_targets(Row(**ROW), failed), check=True)


def test_there_is_a_target_for_every_peer() -> None:
    pytest.importorskip("socketio", reason="the peers are missing: pip install --group benchmarks")
    assert set(TARGETS) == {load_peer(name).name for name in PEERS}
