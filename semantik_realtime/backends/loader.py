"""From settings to plugins: exactly one backend, and whatever the host brings."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

import pluggy

from semantik_realtime.config import Settings
from semantik_realtime.errors import ConfigError, RealtimeError
from semantik_realtime.hookspecs import PROJECT, BackendSpec, HostSpec

logger = logging.getLogger(__name__)

BACKENDS = "semantik_realtime.backends"
"""Entry-point group of backends: a callable that takes `Settings` and gives the plugin."""
PLUGINS = "semantik_realtime.plugins"
"""Entry-point group of host plugins: an object with hooks of `HostSpec`."""

_BACKEND_HOOKS = frozenset(name for name in vars(BackendSpec) if not name.startswith("_"))


def backend_names() -> list[str]:
    """The backends that are installed."""
    return sorted(entry_points(group=BACKENDS).names)


def load_backend(settings: Settings, name: str | None = None) -> object:
    """Make the backend ``name``, the configured one by default. Opens no connection.

    Raises:
        ConfigError: the name is unknown, its distribution cannot be imported,
            or its settings are wrong; the message says what there is.
    """
    name = name or settings.backend
    found = list(entry_points(group=BACKENDS, name=name))
    if not found:
        raise ConfigError(
            f"there is no backend {name!r}; installed: {', '.join(backend_names())} "
            f"(set SEMANTIK_REALTIME_BACKEND)"
        )
    if len({entry.value for entry in found}) > 1:
        raise ConfigError(
            f"backend {name!r} is claimed by several distributions: "
            + ", ".join(_origin(entry) for entry in found)
        )
    try:
        return found[0].load()(settings)
    except RealtimeError:
        raise
    except Exception as error:
        raise ConfigError(
            f"backend {name!r} from {_origin(found[0])} cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error


def check_backend(backend: object) -> None:
    """See whether ``backend`` has every hook, and each as it is specified.

    Raises:
        ConfigError: it lacks a hook, or has one that does not fit.
    """
    manager = _new_manager()
    try:
        manager.register(backend, name="backend")
    except pluggy.PluginValidationError as error:
        raise ConfigError(f"backend {backend!r} does not fit: {error}") from error
    lacking = sorted(name for name in _BACKEND_HOOKS if not _implementers(manager, name))
    if lacking:
        raise ConfigError(f"backend {backend!r} has no hook {', '.join(lacking)}")


def build_plugins(transport: object, plugins: Iterable[object] = ()) -> pluggy.PluginManager:
    """Register the one transport and the host's plugins.

    The given ``plugins`` are asked before those of the entry-point group. A
    plugin that does not load or fit is reported and left out.
    """
    manager = _new_manager()
    manager.register(transport, name="backend")
    for entry in entry_points(group=PLUGINS):
        try:
            manager.register(entry.load(), name=entry.name)
        except Exception:
            logger.exception("loader: plugin left out name=%s from=%s", entry.name, _origin(entry))
    # pluggy calls what was registered last first.
    for plugin in plugins:
        try:
            manager.register(plugin)
        except Exception:
            logger.exception("loader: plugin left out plugin=%r", plugin)
    return manager


def wrapped(manager: pluggy.PluginManager, hook: str) -> bool:
    """Whether more than the backend takes part in ``hook``, so that pluggy must make the call."""
    return len(_implementers(manager, hook)) > 1


def _new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(BackendSpec)
    manager.add_hookspecs(HostSpec)
    return manager


def _implementers(manager: pluggy.PluginManager, hook: str) -> list[pluggy.HookImpl]:
    return list(getattr(manager.hook, hook).get_hookimpls())


def _origin(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
