"""What the package answers for Celery, in a web server that uses it.

The package registers `celery_hooks` by its entry point, in every process. It
imports no Celery: where the process has not imported Celery itself, its hooks
have no opinion.
"""

from __future__ import annotations

import sys
from typing import Any

from semantik_realtime.hookspecs import hookimpl


class CeleryHooks:
    """The hooks of `semantik_realtime.job_control` for the Celery application of this process."""

    @hookimpl
    def cancel(self, job: str, name: str | None, is_running: bool, terminate: str | None) -> Any:
        if sys.modules.get("celery") is None:
            return None
        from semantik_realtime.worker import celery_control

        return celery_control.cancel(job, name, is_running, terminate)


celery_hooks = CeleryHooks()
