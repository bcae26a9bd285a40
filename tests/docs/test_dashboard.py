"""Code, docs/metrics.md and the Grafana dashboard have the same metrics and labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from prometheus_client import CollectorRegistry

from semantik_realtime import Realtime
from semantik_realtime.config import Settings
from semantik_realtime.core.session import CloseCode

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "metrics.md").read_text()
DASHBOARD = json.loads((ROOT / "docs" / "grafana" / "dashboard.json").read_text())
ROWS = ["Live traffic", "Lag", "Outage", "Writers", "Sinks"]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
CODES = {code.name.lower() for code in CloseCode}

Labels = dict[str, set[str]]


@pytest.fixture(scope="module")
def registry() -> Iterator[CollectorRegistry]:
    """The metrics of a new web server."""
    settings = Settings(backend="memory", jwt_secret="a secret of at least thirty-two bytes")
    realtime = Realtime(settings)
    assert realtime.web.metrics is not None
    yield realtime.web.metrics.registry
    realtime.close()


@pytest.fixture(scope="module")
def samples(registry: CollectorRegistry) -> dict[str, Labels]:
    """Each sample of the registry, with the values of its labels."""
    found: dict[str, Labels] = {}
    for family in registry.collect():
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return found


def documented() -> dict[str, tuple[str, str]]:
    """Return type and labels of each metric in the page's tables."""
    rows = re.findall(r"^\| `(semantik_realtime_\w+)` \| (\w+) \|(.*?)\|.+\|$", PAGE, re.MULTILINE)
    assert len(rows) == len({name for name, _, _ in rows}) > 10
    return {name: (type, labels.strip()) for name, type, labels in rows}


def test_the_page_documents_exactly_the_metrics_that_exist_with_their_types(
    registry: CollectorRegistry,
) -> None:
    exported = {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in registry.collect()
    }
    assert {name: type for name, (type, _) in documented().items()} == exported


def test_the_page_documents_every_label_with_all_its_values(samples: dict[str, Labels]) -> None:
    for name, (type, text) in documented().items():
        labels = samples[name + "_count" if type == "histogram" else name]
        label, _, values = text.partition(": ")
        assert set(labels) == ({label.strip("`")} if label else set()), name
        if labels:
            [found] = labels.values()
            if "the close code by name" in values:
                own = values.partition(",")[0]
                assert found == CODES | {own}, name
            else:
                assert found == set(values.split(", ")), name
    listed = PAGE.partition("A name of a close code is ")[2].partition("(")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == CODES


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"]
    yield from re.findall(r"^ +expr: (.*)$", PAGE, re.MULTILINE)


def selected(expression: str) -> list[promql_parser.VectorSelector]:
    """Return the series that a query selects, with Grafana's variables replaced."""
    for variable, value in {"$__rate_interval": "1m", "$__range": "3h"}.items():
        expression = expression.replace(variable, value)
    found = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


@pytest.mark.parametrize("expression", list(expressions()))
def test_every_query_uses_metrics_and_labels_that_exist(
    expression: str, samples: dict[str, Labels]
) -> None:
    series = selected(expression)
    assert series
    for selector in series:
        assert selector.name in samples, selector.name
        labels = samples[selector.name]
        for matcher in selector.matchers.matchers:
            if matcher.name not in ("job", "instance"):
                assert set(matcher.value.split("|")) <= labels[matcher.name]
    # Prometheus adds the labels job and instance.
    kept = {
        name for names in re.findall(r"by \(([\w, ]+)\)", expression) for name in names.split(", ")
    }
    [given] = {frozenset(samples[selector.name]) for selector in series}
    assert kept <= given | {"job", "instance"}


def test_the_dashboard_shows_every_metric(samples: dict[str, Labels]) -> None:
    shown = {
        re.sub("_bucket$", "", selector.name)
        for panel in panels()
        for target in panel["targets"]
        for selector in selected(target["expr"])
    }
    assert shown == documented().keys()


def test_the_dashboard_can_be_imported_anywhere() -> None:
    # Both would bind it to one installation of Grafana.
    assert "id" not in DASHBOARD
    assert "__inputs" not in DASHBOARD
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    for name in ("job", "instance"):
        assert variables[name]["datasource"] == SOURCE
    for panel in panels():
        assert panel["datasource"] == SOURCE
        assert all(target["datasource"] == SOURCE for target in panel["targets"])
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_the_variables_list_processes_by_a_metric_that_each_process_exports(
    samples: dict[str, Labels],
) -> None:
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels())))
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert used == variables.keys() | {"__rate_interval", "__range"}
    everywhere = PAGE.partition("## Metrics of every process that writes")[2]
    for name in ("job", "instance"):
        [(asked, label)] = re.findall(
            r"^label_values\((.*), (\w+)\)$", variables[name]["definition"]
        )
        [series] = selected(asked)
        assert series.name in samples
        assert f"| `{series.name}` |" in everywhere
        assert label == name


def test_panels_are_grouped_and_do_not_overlap() -> None:
    assert [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"] == ROWS
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + dx, place["y"] + dy)
            for dx in range(place["w"])
            for dy in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
