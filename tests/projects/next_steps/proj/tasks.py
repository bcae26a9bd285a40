"""Tasks that know nothing of live updates."""

import time

from proj.celery import app


@app.task
def add(x, y):
    return x + y


@app.task
def divide(x, y):
    return x / y


@app.task(bind=True, autoretry_for=(ConnectionError,), retry_backoff=False, default_retry_delay=0)
def fetch(self, url):
    if self.request.retries == 0:
        raise ConnectionError(f"{url} does not answer")
    return url


@app.task(bind=True)
def resize(self, pictures, seconds=0.0):
    for number in range(1, pictures + 1):
        time.sleep(seconds)
        meta = {"current": number, "total": pictures, "message": "Resizing pictures"}
        self.update_state(state="PROGRESS", meta=meta)
