"""The web server of an application whose Celery the process has, as `webhost` for the rest."""

import mirrored_app
from webhost import app

__all__ = ["app", "mirrored_app"]
