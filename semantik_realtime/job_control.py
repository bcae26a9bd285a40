"""The hooks that cancel a job and start it again: for the host, and for what runs its tasks.

They are hooks like those of `semantik_realtime.hookspecs.HostSpec`, and the
plugins are asked in the same way. Where the web application uses Celery, the
package cancels by Celery itself (`semantik_realtime.worker.celery_hooks`); a
plugin of the host is asked before that.
"""

from __future__ import annotations

from collections.abc import Awaitable
from uuid import UUID

from semantik_realtime.hookspecs import NoOpinion, hookspec

Permitted = bool | NoOpinion | None


class JobControlSpec:
    """Who may cancel a job or start it again, and how that is done.

    A hook may be a plain function or a coroutine; one that waits for a server
    is a coroutine. All plugins together have 5 s.
    """

    @hookspec(firstresult=True)
    def may_cancel(
        self, user: str, topic: str, owner: str | None
    ) -> Permitted | Awaitable[Permitted]:
        """Return True if ``user``, who may watch ``topic``, may cancel its job.

        None: only the job's owner may.

        Raises:
            Exception: as `semantik_realtime.hookspecs.HostSpec.authorize`.
        """

    @hookspec(firstresult=True)
    def may_retry(
        self, user: str, topic: str, owner: str | None
    ) -> Permitted | Awaitable[Permitted]:
        """Return True if ``user``, who may watch ``topic``, may start its job again.

        None: only the job's owner may.

        Raises:
            Exception: as `may_cancel`.
        """

    @hookspec(firstresult=True)
    def cancel(
        self, job: str, name: str | None, is_running: bool, terminate: str | None
    ) -> bool | Awaitable[bool | None] | None:
        """Tell what runs the tasks that ``job`` is cancelled. Idempotent.

        Return True if it was told, False if this job cannot be cancelled, and
        None if it is not this plugin's. The server itself appends the event.

        Args:
            job: the job's id.
            name: the task's name, if the job's state has it.
            is_running: False if the job waits: in a queue, for its time, or for a retry.
            terminate: the signal that ends the process of a task that runs, ``SIGTERM`` for
                example; None: the task runs on, unless it asks whether it is cancelled.

        Raises:
            Exception: any; the client is asked to try again later.
        """

    @hookspec(firstresult=True)
    def retry(
        self, job: str, user: str
    ) -> str | UUID | bool | Awaitable[str | UUID | bool | None] | None:
        """Start ``job``, which has ended, once more for ``user``.

        Return the id of the job that runs now, the same one or a new one; False
        if this job cannot be started again, and None if it is not this plugin's.

        Raises:
            Exception: any; the client is asked to try again later.
        """
