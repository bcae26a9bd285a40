"""An application with a lifespan, a login and a database of its own. Marked is what was added."""

import asyncio
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.cookies import SimpleCookie
from typing import Annotated, Any

from celery import Celery
from fastapi import Cookie, Depends, FastAPI, HTTPException, Response

from semantik_realtime import Realtime, hookimpl, install, track  # added

queue = Celery("webui", broker=os.environ["REDIS_URL"])
install(queue)  # added

SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (token TEXT PRIMARY KEY, user TEXT);
CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, user TEXT, status TEXT);
"""


@contextmanager
def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(os.environ.get("WEBUI_DATABASE", "webui.db"))
    try:
        with connection:
            yield connection
    finally:
        connection.close()


@queue.task(bind=True, name="index")
def index(self: Any, paths: list[str]) -> None:
    for _ in track(paths, "Indexing", unit="files"):  # was: for _ in paths
        pass
    with database() as db:
        db.execute("UPDATE jobs SET status = 'completed' WHERE id = ?", [self.request.id])


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with database() as db:
        db.executescript(SCHEMA)
    yield


app = FastAPI(lifespan=lifespan)


def user_of(session: Annotated[str | None, Cookie()] = None) -> str:
    with database() as db:
        row = db.execute("SELECT user FROM sessions WHERE token = ?", [session]).fetchone()
    if row is None:
        raise HTTPException(401)
    return str(row[0])


@app.post("/login/{user}")
def login(user: str, response: Response) -> None:
    token = secrets.token_urlsafe()
    with database() as db:
        db.execute("INSERT INTO sessions VALUES (?, ?)", [token, user])
    response.set_cookie("session", token, httponly=True, samesite="lax")


@app.post("/index")
def start(paths: list[str], user: Annotated[str, Depends(user_of)]) -> dict[str, str]:
    job = secrets.token_hex(8)
    with database() as db:
        db.execute("INSERT INTO jobs VALUES (?, ?, 'queued')", [job, user])
    headers = {"realtime_owner": user}  # added
    index.apply_async([paths], task_id=job, headers=headers)
    return {"job": job}


# From here on all is added.


class Rules:
    """Who asks, who may see what, and what the database knows."""

    @hookimpl
    async def authenticate(self, credentials: Any) -> str | None:
        cookie = SimpleCookie(credentials.headers.get("cookie", "")).get("session")
        # Its HTTPException refuses here too.
        return await asyncio.to_thread(user_of, cookie.value) if cookie else None

    @hookimpl
    async def authorize(self, user: str, topic: str, owner: str | None) -> bool | None:
        kind, _, job = topic.partition(":")
        if kind != "job":
            return None
        row = await asyncio.to_thread(self._row, job)
        return None if row is None else row[0] == user

    @hookimpl
    async def recall(self, topic: str) -> dict[str, dict[str, str]] | None:
        kind, _, job = topic.partition(":")
        row = await asyncio.to_thread(self._row, job) if kind == "job" else None
        return None if row is None else {job: {"status": row[1]}}

    @staticmethod
    def _row(job: str) -> tuple[str, str] | None:
        with database() as db:
            row = db.execute("SELECT user, status FROM jobs WHERE id = ?", [job]).fetchone()
        return row if row is None else (row[0], row[1])


Realtime(plugins=[Rules()]).install(app)
