"""A Celery application that does not install the tracker; a few of its tasks use `job`.

Broker and settings come from the environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery import Celery, Task, chord, group
from celery.contrib.abortable import AbortableTask
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.log import get_task_logger

app = Celery("mirrored_app")
app.conf.update(
    broker_url=os.environ.get("TEST_BROKER_URL") or os.environ.get("REDIS_URL", "memory://"),
    result_backend=os.environ.get("REDIS_URL", "cache+memory://"),
    result_expires=600,
    worker_prefetch_multiplier=1,
    task_default_queue=os.environ.get("TEST_QUEUE", "celery"),
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    worker_pool_start_method=os.environ.get("TEST_START_METHOD", "fork"),
    broker_transport_options={"visibility_timeout": 600},
    task_protocol=int(os.environ.get("TEST_PROTOCOL", "2")),
    worker_send_task_events=bool(os.environ.get("TEST_EVENTS")),
    worker_max_tasks_per_child=int(os.environ.get("TEST_TASKS_PER_CHILD", "0")) or None,
)
if owner := os.environ.get("TEST_BEAT_OWNER"):
    # Two entries: the owner of the first is its own, that of the second is the setting's.
    app.conf.beat_max_loop_interval = 0.2
    app.conf.beat_schedule = {
        name: {"task": "mirrored_app.add", "schedule": 0.5, "args": (1, 2), "options": options}
        for name, options in {
            "own": {"headers": {"realtime_owner": owner}},
            "of the setting": {},
        }.items()
    }


@app.task
def add(a: int, b: int) -> int:
    return a + b


@app.task
def sleep(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.01)


@app.task
def fail(secret: str) -> None:
    local = secret
    raise ValueError("the file is empty" if local else "")


class Unpicklable(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"unpicklable {a} {b}")


@app.task
def fail_unpicklably() -> None:
    raise Unpicklable(1, 2)


@app.task(bind=True)
def retry(self: Task, times: int) -> int:
    from semantik_realtime import job

    job.set(seen=self.request.retries)
    if self.request.retries < times:
        raise self.retry(countdown=0, exc=ValueError("not yet"))
    return times


@app.task(bind=True)
def retry_and_go_on(self: Task, how: str) -> str:
    """Publish the next attempt, and end this one as if nothing had happened."""
    if self.request.retries:
        return "second"
    if how == "unraised":
        self.retry(countdown=1, throw=False)
    with contextlib.suppress(Retry):
        if how != "unraised":
            raise self.retry(countdown=1)
    if how == "failed":
        raise ValueError("after all")
    return "first"


@app.task(bind=True)
def report(self: Task, count: int) -> int:
    for number in range(1, count + 1):
        self.update_state(
            state="PROGRESS", meta={"current": number, "total": count, "status": f"file {number}"}
        )
    return count


@app.task
def use_job() -> None:
    from semantik_realtime import job, track

    for name in track(["a.txt", "b.txt", "c.txt"], "Indexing", unit="files"):
        job.emit("file_completed", file=name)
    job.set(failed_files=0)


@app.task
def ignore(text: str = "") -> None:
    raise Ignore(text)


@app.task(bind=True)
def declare_failure(self: Task) -> None:
    self.update_state(
        state="FAILURE", meta={"exc_type": "ValueError", "exc_message": ["no such collection"]}
    )
    raise Ignore


@app.task
def reject() -> None:
    raise Reject("not for me", requeue=False)


@app.task(bind=True, acks_late=True)
def reject_once(self: Task) -> None:
    if not self.request.delivery_info.get("redelivered"):
        raise Reject("later", requeue=True)


@app.task(bind=True)
def replace(self: Task) -> None:
    raise self.replace(add.s(1, 2))


@app.task(bind=True)
def replace_by_chain(self: Task) -> None:
    raise self.replace(add.s(1, 2) | add.s(3))


@app.task(bind=True)
def replace_by_chain_with_chord(self: Task) -> None:
    raise self.replace(add.s(1, 2) | chord([add.s(1), add.s(2)], total.s()))


@app.task(bind=True)
def replace_by_failing_chain(self: Task) -> None:
    raise self.replace(fail.si("x") | add.si(1, 2))


@app.task
def exit_process(how: str) -> None:
    from semantik_realtime import job
    from semantik_realtime.worker.current import current_job

    job.set(done=3)
    job.progress(3, 10)
    job.emit("about_to_exit")
    running = current_job()
    assert running is not None
    # The events must be with the backend before the process ends.
    running.runtime.emitter.flush(5)
    if how == "exit":
        sys.exit(3)
    if how == "_exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def exit_in_outage() -> None:
    """Kill the process in an outage, when the job's events are on disk."""
    from semantik_realtime import job
    from semantik_realtime.worker.current import current_job

    job.set(done=3)
    job.emit("about_to_exit")
    running = current_job()
    assert running is not None
    file = running.runtime.emitter._file
    deadline = time.monotonic() + 20
    while not (file and file.exists) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
def exit_process_once(self: Task) -> None:
    if not self.request.delivery_info.get("redelivered"):
        os.kill(os.getpid(), signal.SIGKILL)


@app.task
def wait() -> None:
    from semantik_realtime import job

    job.set(waiting=True)
    threading.Event().wait(60)


@app.task
def work(seconds: float, asks: bool) -> str:
    """Report progress for some time; ask whether the job is cancelled, or not."""
    from semantik_realtime import job

    deadline = time.monotonic() + seconds
    for number in itertools.count(1):
        if asks:
            job.raise_if_cancelled()
        if time.monotonic() > deadline:
            break
        job.progress(number)
        time.sleep(0.01)
    return "done"


@app.task(bind=True, base=AbortableTask)
def work_until_aborted(self: AbortableTask) -> str:
    deadline = time.monotonic() + 30
    while not self.is_aborted() and time.monotonic() < deadline:
        time.sleep(0.02)
    return "aborted"


@app.task(soft_time_limit=1)
def overrun_softly() -> None:
    from semantik_realtime import job

    deadline = time.monotonic() + 30
    number = 0
    # An exception that a signal raises in a finalizer is lost, and the signal comes only once.
    gc.disable()
    try:
        while time.monotonic() < deadline:
            number += 1
            job.progress(number)
            job.emit("note")
    finally:
        gc.enable()


@app.task(time_limit=1)
def overrun() -> None:
    from semantik_realtime import job

    job.progress(5, 10)
    threading.Event().wait(60)


@app.task(bind=True)
def spawn(self: Task) -> str:
    return str(add.apply_async((1, 1), queue="unconsumed").id)


@app.task
def spawn_first() -> None:
    from semantik_realtime import job

    sent = add.apply_async((1, 1), headers={"realtime_owner": "auth0|5f7c"})
    job.emit("spawned", id=str(sent.id))


@app.task(bind=True)
def emit_many(self: Task, count: int) -> int:
    from semantik_realtime import job

    for number in range(count):
        job.emit("note", number=number)
    return os.getpid()


@app.task(bind=True)
def describe(self: Task) -> dict[str, Any]:
    from semantik_realtime import job

    return {"id": job.id, "attempt": job.attempt}


@app.task(bind=True)
def start(self: Task, kind: str) -> list[str]:
    """Publish further tasks in one of the ways of Celery; return the ids of the jobs that begin."""
    one, other = add.s(1, 2), add.s(3)
    if kind == "delay":
        return [add.delay(1, 2).id]
    if kind == "chain":
        return [(one | other | add.s(4)).apply_async().id]
    if kind == "chain of its own":
        return [(one | other).apply_async(headers={"realtime_job": None}).id]
    if kind == "group":
        return [group(add.s(1, n) for n in range(3)).apply_async().id]
    if kind == "chord":
        return [chord([add.s(1, n) for n in range(3)], total.s()).apply_async().id]
    if kind == "link":
        callback = add.s(5).set(task_id=f"{self.request.id}-link")
        return [add.apply_async((1, 2), link=callback).id, callback.options["task_id"]]
    if kind == "link_error":
        callback = describe_failure.s().set(task_id=f"{self.request.id}-error")
        fail.apply_async(("secret",), link_error=callback)
        return [callback.options["task_id"]]
    if kind == "link_error of a killed process":
        callback = describe_failure.s().set(task_id=f"{self.request.id}-error")
        exit_process.apply_async(("kill",), link_error=callback)
        return [callback.options["task_id"]]
    if kind == "chunks":
        from semantik_realtime.worker.canvas import MAPS_KEEP_OPTIONS

        parts = add.chunks([(1, 2), (3, 4), (5, 6), (7, 8)], 2)()
        return [parts.id] if MAPS_KEEP_OPTIONS else [child.id for child in parts.children]
    if kind == "starmap":
        return [add.starmap([(1, 2), (3, 4)]).apply_async().id]
    assert kind == "nested"
    child = start.delay("delay")
    return [child.id]


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
def describe_failure(task_id: str) -> str:
    return task_id


@app.task(bind=True)
def replace_by_group(self: Task) -> None:
    raise self.replace(group(add.s(1, n) for n in range(3)))


@app.task(bind=True)
def replace_by_chord(self: Task) -> None:
    raise self.replace(chord([add.s(1, n) for n in range(3)], total.s()))


@app.task(bind=True, autoretry_for=(ValueError,), default_retry_delay=0, max_retries=5)
def retry_automatically(self: Task) -> int:
    if self.request.retries < 2:
        raise ValueError("not yet")
    return self.request.retries


@app.task
def compute(seconds: float) -> int:
    """Compute without a pause: in a greenlet, no other greenlet runs."""
    from semantik_realtime import job

    deadline, number = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        number += 1
        job.progress(number)
    return number


@app.task
def hold_interpreter(seconds: float) -> None:
    """Let no other thread of this process run, as a long call of a C library does."""
    ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))


@app.task(bind=True, acks_late=True)
def wait_until_redelivered(self: Task) -> None:
    if not self.request.delivery_info.get("redelivered"):
        time.sleep(60)


@app.task
def wait_calmly(seconds: float) -> None:
    from semantik_realtime import job

    job.set(waiting=True)
    time.sleep(seconds)


@app.task(acks_late=True)
def sleep_late(seconds: float) -> None:
    sleep(seconds)


@app.task(bind=True)
def store_and_hang(self: Task, state: str) -> None:
    """Store a result as Celery does at the end, and then hang: the end is never sent."""
    from semantik_realtime import job

    result = ValueError("no pages") if state == "FAILURE" else None
    self.backend.store_result(self.request.id, result, state)
    job.set(stored=True)
    threading.Event().wait(60)


@app.task
def spin(seconds: float) -> None:
    """Keep the interpreter busy, without a call that releases it."""
    deadline = time.monotonic() + seconds
    number = 0
    while time.monotonic() < deadline:
        number += 1


@app.task
def emit_without_end() -> None:
    from semantik_realtime import job

    number = 0
    while True:
        number += 1
        job.emit("note", number=number)
        job.progress(number)


@app.task
def outlive_parent(seconds: float) -> None:
    """Survive the death of the worker's main process, as a child does on other systems."""
    import ctypes

    from semantik_realtime import job

    ctypes.CDLL(None).prctl(1, 0)
    job.set(ready=True)
    sleep(seconds)


@app.task(bind=True, max_retries=3)
def retry_later(self: Task) -> None:
    raise self.retry(countdown=600, exc=ValueError("not yet"))


@app.task(bind=True)
def report_in_thread(self: Task, meta: Any) -> None:
    task_id = self.request.id
    thread = threading.Thread(
        target=lambda: self.update_state(task_id=task_id, state="PROGRESS", meta=meta)
    )
    thread.start()
    thread.join()


@app.task(realtime={"logs": "DEBUG"})
def write_log(count: int) -> str:
    from semantik_realtime import job

    logger, own = logging.getLogger("app.pdf"), get_task_logger("app.tasks")
    logger.debug("below the worker's level")
    for number in range(count):
        logger.warning("page %d has no text", number)
    own.error("giving up")
    print("printed")
    job.emit("written")
    # At INFO Celery logs it as the result.
    return "secret result"


@app.task
def write_log_unasked() -> str:
    logging.getLogger("app.pdf").warning("secret")
    return "done"


@app.task
def use_tqdm() -> None:
    # Not before the task runs: a worker may never have imported it.
    from tqdm import tqdm

    from semantik_realtime import job, track

    for _ in tqdm(range(20), "Pages", unit="pages"):
        time.sleep(0.02)
    job.emit("pages_read")
    for _ in track(["a.pdf"], "Indexing", unit="files"):
        with tqdm(total=8, desc="Words") as words:
            words.update(3)
            words.refresh()
            job.emit("half")


@app.task(realtime=False)
def unseen() -> str | None:
    from semantik_realtime import job

    job.emit("note")
    return job.id


@app.task
def use_threads() -> None:
    from semantik_realtime import job

    def read(number: int) -> None:
        job.emit("read", number=number)
        bar.advance()

    with job.bar(20, "Reading", unit="files") as bar, ThreadPoolExecutor(4) as pool:
        list(pool.map(job.wrap(read), range(20)))


@app.task
def list_of(number: int) -> list[int]:
    return [number]


@app.task
def fail_after(number: int) -> None:
    raise ValueError(f"the file is empty after {number}")


@app.task
def ignore_result_of(ids: list[str]) -> int:
    return len(ids)
