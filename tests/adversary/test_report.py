"""The tables of docs/faults.md say what the soak's lines say."""

from __future__ import annotations

from report import PAGE, page
from world import Result


def test_a_row_has_the_slowest_watcher_the_losses_and_how_they_were_told() -> None:
    one = Result(1, "failover_cut", "redis", 7, lost=3, shown=10)
    one.live_seconds, one.told = {"js": 0.5, "sse": 1.25}, {"js": ["diverged"], "sse": ["new"]}
    other = Result(2, "failover_cut", "redis", 7, shown=20, faults=["G2"], degraded={"js": 1})
    other.live_seconds = {"js": -1.0}
    text = page("a <!-- figures -->old<!-- end of figures --> b", [one, other])
    assert text.startswith("a <!-- figures -->")
    assert text.endswith("<!-- end of figures --> b")
    assert "old" not in text
    assert "| redis | 2 | 1 | 30 | 3 | 7 (2) |" in text
    assert "| `failover_cut` | redis | 2 | degraded | ≤ 1.2 s, 1 never | 3: `diverged` |" in text


def test_the_page_has_a_place_for_the_tables() -> None:
    assert page(PAGE.read_text(), []).count("<!-- figures -->") == 1
