"""What must happen around a fork of this process."""

from __future__ import annotations

import os
from collections.abc import Callable


def on_fork(
    *,
    before: Callable[[], object] | None = None,
    after_in_parent: Callable[[], object] | None = None,
    after_in_child: Callable[[], object] | None = None,
) -> None:
    """Call these around every fork from now on. Does nothing where processes cannot fork.

    See `os.register_at_fork`, which Windows lacks.
    """
    if hasattr(os, "register_at_fork"):
        given = {
            "before": before,
            "after_in_parent": after_in_parent,
            "after_in_child": after_in_child,
        }
        os.register_at_fork(**{name: call for name, call in given.items() if call is not None})
