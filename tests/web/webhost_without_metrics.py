"""The same application where prometheus-client is not installed."""

import sys

sys.modules["prometheus_client"] = None  # type: ignore[assignment]

from webhost import app  # noqa: E402

__all__ = ["app"]
