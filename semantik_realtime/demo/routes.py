"""The HTTP interface: login, documents, jobs, search."""

import logging
import time
from dataclasses import dataclass, field
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from kombu.exceptions import OperationalError
from pydantic import BaseModel, Field
from sqlalchemy import select, update
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from semantik_realtime.clock import now_text
from semantik_realtime.core.lifecycle import END_STATUSES
from semantik_realtime.demo import library, login
from semantik_realtime.demo.records import MAX_ID, Document, Job, Sessions, User
from semantik_realtime.demo.search import SearchIndex
from semantik_realtime.demo.settings import DemoSettings
from semantik_realtime.demo.tasks import cancel_index, start_index
from semantik_realtime.demo.texts import Unreadable, encodable
from semantik_realtime.errors import BackendError

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/api")

MAX_JOBS_LISTED = 50
MAX_FILES_PER_UPLOAD = 500


@dataclass(frozen=True, slots=True)
class Host:
    """State shared by the routes (``app.state.host``)."""

    settings: DemoSettings
    sessions: Sessions
    login_attempts: login.LoginAttempts = field(default_factory=login.LoginAttempts)


def get_host(request: Request) -> Host:
    host: Host = request.app.state.host
    return host


HostOf = Annotated[Host, Depends(get_host)]


def get_user(request: Request, host: HostOf) -> User:
    """Return the user of a bearer token, or else of the session cookie.

    Raises:
        HTTPException: 401, there is no valid token.
    """
    token = request.cookies.get(login.COOKIE)
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        token = bearer
    claims = login.read_token(token or "", host.settings.require_secret())
    if claims:
        with host.sessions() as session:
            user = session.get(User, claims[0])
        if user:
            return user
    raise HTTPException(401, "not logged in")


UserOf = Annotated[User, Depends(get_user)]
Id = Annotated[int, Field(ge=1, le=MAX_ID)]


class Login(BaseModel):
    username: str = Field(max_length=100)
    password: str = Field(max_length=1000)


class NewJob(BaseModel):
    """The documents of a new job: those of all members together."""

    all: bool = False
    paths: list[str] = Field([], max_length=library.MAX_FOLDER_FILES)
    documents: list[Id] = Field([], max_length=library.MAX_FOLDER_FILES)
    pause_seconds: float | None = Field(None, ge=0, le=10)


@router.post("/login")
def log_in(body: Login, request: Request, response: Response, host: HostOf) -> dict[str, Any]:
    source = (body.username, request.client.host if request.client else "")
    wait_seconds = host.login_attempts.admit(source, time.monotonic())
    if wait_seconds > 0:
        headers = {"retry-after": str(int(wait_seconds) + 1)}
        raise HTTPException(429, "too many failed logins; try again later", headers)
    with host.sessions() as session:
        user = session.scalar(select(User).where(User.name == body.username))
    if not login.is_password(body.password, user.password if user else None) or user is None:
        raise HTTPException(401, "wrong name or password")
    host.login_attempts.clear(source)
    return {"user": _user_view(user), "token": _open_session(user, response, host.settings)}


@router.post("/logout", status_code=204)
def log_out(response: Response) -> None:
    response.delete_cookie(login.COOKIE, httponly=True, samesite="lax")


@router.get("/me")
def get_me(request: Request, response: Response, user: UserOf, host: HostOf) -> dict[str, Any]:
    """Return the logged-in user. Renews the cookie after half of its lifetime."""
    settings = host.settings
    claims = login.read_token(request.cookies.get(login.COOKIE, ""), settings.require_secret())
    if claims and claims[1] < settings.session_seconds / 2:
        _open_session(user, response, settings)
    return {"user": _user_view(user)}


def _user_view(user: User) -> dict[str, Any]:
    return {"id": user.id, "name": user.name, "feed": f"user:{user.id}"}


def _open_session(user: User, response: Response, settings: DemoSettings) -> str:
    token = login.issue_token(user.id, settings.require_secret(), settings.session_seconds)
    response.set_cookie(
        login.COOKIE,
        token,
        max_age=settings.session_seconds,
        httponly=True,
        samesite="lax",
        secure=settings.cookie_secure,
    )
    return token


@router.get("/folder")
def list_folder(user: UserOf, host: HostOf) -> dict[str, Any]:
    files, is_truncated = library.list_folder(host.settings)
    return {
        "files": [{"path": file.path, "size_bytes": file.size_bytes} for file in files],
        "truncated": is_truncated,
    }


@router.get("/documents")
def list_documents(user: UserOf, host: HostOf) -> dict[str, Any]:
    with host.sessions() as session:
        documents = session.scalars(
            select(Document).where(Document.user_id == user.id).order_by(Document.name)
        )
        return {"documents": [document.view() for document in documents]}


@router.post("/documents", status_code=201)
async def upload_documents(request: Request, user: UserOf, host: HostOf) -> dict[str, Any]:
    """Store the text files of a multipart form; the names of the fields do not matter.

    The answer has the reason of each file that was refused. 422: no file was stored.
    """
    async with request.form(max_files=MAX_FILES_PER_UPLOAD, max_fields=20) as form:
        files = [item for _, item in form.multi_items() if isinstance(item, UploadFile)]
        if not files:
            raise HTTPException(422, "no file")
        stored, refused = await run_in_threadpool(_store, host, user.id, files)
    if not stored:
        raise HTTPException(422, "; ".join(f"{file['name']}: {file['reason']}" for file in refused))
    return {"documents": stored, "refused": refused}


def _store(
    host: Host, user_id: int, files: list[UploadFile]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    stored, refused = [], []
    with host.sessions.begin() as session:
        for file in files:
            name = file.filename or ""
            try:
                document = library.upload(session, user_id, host.settings, name, file.file)
                stored.append(document.view())
            except Unreadable as error:
                refused.append({"name": library.display_name(name), "reason": str(error)})
    return stored, refused


@router.delete("/documents/{document_id}", status_code=204)
def delete_document(document_id: Id, user: UserOf, host: HostOf) -> None:
    with host.sessions.begin() as session:
        document = session.get(Document, document_id)
        if document is None or document.user_id != user.id:
            raise HTTPException(404, "no such document")
        library.remove(session, host.settings, document)


@router.post("/jobs", status_code=201)
def create_job(body: NewJob, user: UserOf, host: HostOf) -> dict[str, Any]:
    pause_seconds = body.pause_seconds
    with host.sessions.begin() as session:
        documents = _choose(session, body, user.id, host.settings)
        if not documents:
            raise HTTPException(422, "no documents")
        job = Job(
            id=str(uuid4()),
            user_id=user.id,
            label=documents[0].name if len(documents) == 1 else f"{len(documents):,} documents",
            document_ids=[document.id for document in documents],
            total_files=len(documents),
            pause_seconds=host.settings.pause_of(len(documents))
            if pause_seconds is None
            else pause_seconds,
        )
        session.add(job)
    try:
        start_index(job.id, owner=str(user.id), redis_url=host.settings.redis_url)
    except OperationalError as error:
        logger.warning("demo: job not queued job=%s error=%s", job.id, type(error).__name__)
        with host.sessions.begin() as session:
            session.delete(job)
        raise HTTPException(503, "the job queue does not answer; try again later") from error
    return job.view()


def _choose(session: Session, body: NewJob, user_id: int, settings: DemoSettings) -> list[Document]:
    paths = list(body.paths)
    own = select(Document).where(Document.user_id == user_id).order_by(Document.name)
    if body.all:
        paths += [file.path for file in library.list_folder(settings)[0]]
        others = list(session.scalars(own.where(Document.origin == "upload")))
    else:
        others = list(session.scalars(own.where(Document.id.in_(body.documents))))
        if len(others) != len(set(body.documents)):
            raise HTTPException(404, "no such document")
    try:
        chosen = library.choose(session, user_id, settings, paths)
    except library.NotInFolder as error:
        raise HTTPException(404, encodable(f"no such file: {error}")) from error
    return list(dict.fromkeys([*chosen, *others]))


@router.get("/jobs")
def list_jobs(user: UserOf, host: HostOf) -> dict[str, Any]:
    """Return the newest jobs, newest first, and ``now``: pages compute ages with this clock."""
    with host.sessions() as session:
        jobs = session.scalars(
            select(Job)
            .where(Job.user_id == user.id)
            .order_by(Job.queued_at.desc(), Job.id)
            .limit(MAX_JOBS_LISTED)
        )
        return {"jobs": [job.view() for job in jobs], "now": now_text()}


@router.get("/jobs/{job_id}")
def get_job(job_id: str, user: UserOf, host: HostOf) -> dict[str, Any]:
    with host.sessions() as session:
        job = _own_job(session, job_id, user)
        return job.view() | {"failures": job.failures}


@router.post("/jobs/{job_id}/cancel")
async def cancel_job(job_id: str, request: Request, user: UserOf, host: HostOf) -> dict[str, Any]:
    """Request that a job stops; a job that has ended does not change."""
    job, has_ended_now = await run_in_threadpool(_cancel_job, host, job_id, user)
    realtime = getattr(request.app.state, "realtime", None)
    if has_ended_now and realtime is not None:
        # The job never ran, so no worker publishes its end.
        view = job.view()
        try:
            await realtime.publish(
                view["topic"],
                "job_cancelled",
                state=view["state"],
                owner=str(user.id),
                also=[view["feed"]],
            )
        except BackendError as error:
            logger.warning("demo: cancellation not published job=%s error=%s", job_id, error.code)
    return job.view()


def _cancel_job(host: Host, job_id: str, user: User) -> tuple[Job, bool]:
    with host.sessions.begin() as session:
        job = _own_job(session, job_id, user)
        if job.status in END_STATUSES:
            return job, False
        job.cancel_requested = True
        session.flush()
        # In one statement, because a worker may start the job at this moment.
        ended = session.execute(
            update(Job)
            .where(Job.id == job_id, Job.status == "queued")
            .values(status="cancelled", ended_at=now_text())
            .returning(Job.id)
        )
        has_ended_now = ended.first() is not None
        session.refresh(job)
    cancel_index(job_id, redis_url=host.settings.redis_url)
    return job, has_ended_now


@router.post("/jobs/{job_id}/rest")
def index_rest(job_id: str, user: UserOf, host: HostOf) -> dict[str, Any]:
    """Continue a job that failed, as a new attempt, with the documents that it did not read."""
    with host.sessions.begin() as session:
        job = _own_job(session, job_id, user)
        before = job.state()
        if before["status"] not in {"failed", "lost"}:
            raise HTTPException(409, "only a job that failed has a rest")
        if job.processed_files + job.failed_files >= len(job.document_ids):
            raise HTTPException(409, "the job has read every document")
        end = {"status": before["status"], "error": job.error, "ended_at": job.ended_at}
        job.update(status="queued", error=None, ended_at=None, updated_at=now_text())
    try:
        start_index(job.id, owner=str(user.id), redis_url=host.settings.redis_url)
    except OperationalError as error:
        logger.warning("demo: job not queued job=%s error=%s", job.id, type(error).__name__)
        with host.sessions.begin() as session:
            _own_job(session, job_id, user).update(**end)
        raise HTTPException(503, "the job queue does not answer; try again later") from error
    return job.view()


@router.delete("/jobs/{job_id}", status_code=204)
async def delete_job(job_id: str, request: Request, user: UserOf, host: HostOf) -> None:
    """Delete a job; a running one stops. The documents that it indexed stay indexed."""
    await run_in_threadpool(_delete_job, host, job_id, user)
    realtime = getattr(request.app.state, "realtime", None)
    if realtime is not None:
        try:
            await realtime.delete(job_id)
        except BackendError as error:
            # The events expire by themselves; until then only their owner can read them.
            logger.warning("demo: events not deleted job=%s error=%s", job_id, error.code)


def _delete_job(host: Host, job_id: str, user: User) -> None:
    with host.sessions.begin() as session:
        job = _own_job(session, job_id, user)
        has_ended = job.status in END_STATUSES
        session.delete(job)
    if not has_ended:
        cancel_index(job_id, redis_url=host.settings.redis_url)


def _own_job(session: Session, job_id: str, user: User) -> Job:
    job = session.get(Job, job_id)
    if job is None or job.user_id != user.id:
        raise HTTPException(404, "no such job")
    return job


@router.get("/search")
def search(
    user: UserOf,
    host: HostOf,
    q: Annotated[str, Query(max_length=500)] = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """Return the documents that have every word; the last word is a prefix."""
    started_at = time.perf_counter()
    with SearchIndex(host.settings.search_index(user.id)) as index:
        found = index.search(q, limit)
    return {
        "query": q,
        "took_ms": round((time.perf_counter() - started_at) * 1000, 1),
        "results": [
            {
                "document": item.document_id,
                "title": item.title,
                "snippet": [{"text": text, "hit": is_hit} for text, is_hit in item.snippet],
                "passages": item.passages,
            }
            for item in found
        ],
    }
