"""The page of ``semantik-realtime serve`` in a browser. Its events are those of the test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from celery import Celery

from semantik_realtime.cli.discovery import ReceivedTasks
from semantik_realtime.cli.ports import listen, port_of
from semantik_realtime.cli.serve import make_app
from semantik_realtime.pytest_plugin import RealtimeFixture

axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright",
    reason="axe-core is missing: pip install axe-playwright-python",
)
pytestmark = pytest.mark.browser

BAR = {"progress": {"current": 3, "total": 4, "unit": "files"}, "message": "Reading <b>files</b>"}


@pytest.fixture
def tasks() -> ReceivedTasks:
    return ReceivedTasks(Celery("shop", set_as_current=False))


@pytest.fixture
def page(tasks: ReceivedTasks, realtime: RealtimeFixture, chromium: Any) -> Iterator[Any]:
    with listen(None, 0) as listening:
        server = uvicorn.Server(uvicorn.Config(make_app("shop", tasks), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        page = chromium.new_page()
        page.goto(f"http://localhost:{port_of(listening)}")
        yield page
        page.close()
        server.should_exit = True
        thread.join(30)


def test_the_page_shows_tasks_as_they_come_and_go_on(
    page: Any, tasks: ReceivedTasks, realtime: RealtimeFixture
) -> None:
    page.get_by_text("No task yet").wait_for()
    publish = publisher(realtime)
    publish("job:1", "job_started", state={"status": "running", "name": "shop.read", **BAR})
    tasks.add({"uuid": "1", "name": "shop.read"})
    row = page.locator("li").filter(has_text="shop.read")
    row.get_by_text("Reading <b>files</b> · 3 of 4 files").wait_for()
    assert row.locator("progress").evaluate("bar => bar.value") == 0.75
    tasks.add({"uuid": "2", "name": "shop.<i>ship</i>"})
    page.get_by_text("No updates: is semantik-realtime installed").wait_for()
    publish(
        "job:2", "job_failed", state={"status": "failed", "error": {"type": "E", "message": "m"}}
    )
    page.get_by_text("E: m").wait_for()
    assert page.locator("li").first.locator(".name").text_content() == "shop.<i>ship</i>"
    publish("job:1", "job_completed", state={"status": "completed", **BAR})
    row.get_by_text("completed").wait_for()
    assert page.title() == "Tasks of shop"
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = axe.Axe().run(page).response["violations"]
        assert not [(fault["id"], [node["target"] for node in fault["nodes"]]) for fault in found]


def test_the_page_fits_a_narrow_window(
    page: Any, tasks: ReceivedTasks, realtime: RealtimeFixture
) -> None:
    page.set_viewport_size({"width": 360, "height": 600})
    task_id = "0c186b76-839b-4959-a06f-579b32d5a9eb"
    state = {"status": "completed", "name": "shop.tasks.read", **BAR}
    publisher(realtime)(f"job:{task_id}", "job_completed", state=state)
    tasks.add({"uuid": task_id, "name": "shop.tasks.read"})
    page.get_by_text("3 of 4 files").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("li .id").get_attribute("title") == task_id


def publisher(realtime: RealtimeFixture) -> Any:
    """Return `publish`, to be called in a thread: playwright runs a loop in the test's own."""

    def publish(*args: Any, **given: Any) -> None:
        thread = threading.Thread(target=realtime.publish, args=args, kwargs=given)
        thread.start()
        thread.join(20)

    return publish
