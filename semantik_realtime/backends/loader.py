"""From settings to plugins: exactly one backend, and the plugins of the host."""

from __future__ import annotations

import difflib
import functools
import logging
import os
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from types import SimpleNamespace
from typing import Any, cast

import pluggy

from semantik_realtime.backends.border import check_reads
from semantik_realtime.config import Settings, unknown_variables, variables_of
from semantik_realtime.errors import ConfigError, RealtimeError
from semantik_realtime.hookspecs import BACKEND_HOOKS, PROJECT, Backend, HostSpec, SinkProxy
from semantik_realtime.job_control import JobControlSpec
from semantik_realtime.sink_hooks import SINK_HOOKS, SinkBackend
from semantik_realtime.urls import mask_text

logger = logging.getLogger(__name__)

BACKENDS = "semantik_realtime.backends"
"""Entry-point group of backends: a callable that takes `Settings` and returns the backend."""
PLUGINS = "semantik_realtime.plugins"
"""Entry-point group of plugins: an object with hooks of `HostSpec`, or wrappers of `Backend`'s."""
SETTINGS = "semantik_realtime.settings"
"""Entry-point group of settings: a class of pydantic-settings, named like its backend or plugin."""


MakeBackend = Callable[[Settings], Backend]

# Makes every backend while it is set, whatever the settings say. Set by `substitute`.
_substitute: MakeBackend | None = None


def substitute(make: MakeBackend | None) -> MakeBackend | None:
    """Make backends by ``make`` from now on, or by their settings again. Return what did before.

    For tests: no setting of the environment can lead them to a server.
    """
    global _substitute
    before, _substitute = _substitute, make
    return before


def is_substituted() -> bool:
    """Return True while `substitute` makes the backends."""
    return _substitute is not None


def backend_names() -> list[str]:
    """Return the names of the installed backends."""
    return sorted(entry_points(group=BACKENDS).names)


def unknown_settings() -> dict[str, str]:
    """Return the variables of the environment that are no settings (`unknown_variables`)."""
    plugins: dict[str, set[str] | None] = {
        entry.name: None for group in (BACKENDS, PLUGINS) for entry in entry_points(group=group)
    }
    # Nothing of a plugin is imported while there is nothing that it could explain.
    if unknown_variables(os.environ, {}):
        plugins |= {entry.name: _read_variables(entry) for entry in entry_points(group=SETTINGS)}
    return unknown_variables(os.environ, plugins)


def _read_variables(entry: EntryPoint) -> set[str] | None:
    try:
        return variables_of(entry.load())
    except Exception:
        logger.exception(
            "loader: settings not read name=%s from=%s", entry.name, _distribution(entry)
        )
        return None


@functools.cache
def log_unknown_settings() -> None:
    """Log each variable that may be a misspelt setting, once a process."""
    for name, nearest in unknown_settings().items():
        logger.warning("config: %s is no setting%s", name, f", is {nearest} meant?" * bool(nearest))


def load_backend(settings: Settings) -> Backend:
    """Make the configured backend. Opens no connection.

    Raises:
        ConfigError: the name is unknown, its distribution cannot be imported,
            or its settings are wrong; the message names the installed backends.
    """
    if _substitute is not None:
        return _substitute(settings)
    name = settings.backend
    found = list(entry_points(group=BACKENDS, name=name))
    if not found:
        installed = backend_names()
        near = difflib.get_close_matches(name, installed, 1)
        raise ConfigError(
            f"there is no backend {mask_text(name)!r}"
            f"{f', did you mean {near[0]!r}?' if near else ''}; installed: "
            f"{', '.join(installed)} (set SEMANTIK_REALTIME_BACKEND)"
        )
    if len({entry.value for entry in found}) > 1:
        raise ConfigError(
            f"backend {name!r} is claimed by several distributions: "
            + ", ".join(_distribution(entry) for entry in found)
        )
    try:
        return cast(Backend, found[0].load()(settings))
    except RealtimeError:
        raise
    except Exception as error:
        raise ConfigError(
            f"backend {name!r} from {_distribution(found[0])} cannot be loaded: "
            f"{type(error).__name__}: {mask_text(str(error))}"
        ) from error


def build_plugins(backend: Backend, plugins: Iterable[object] = ()) -> pluggy.PluginManager:
    """Register the one backend and the host's plugins.

    The given ``plugins`` are called before those of the entry-point group. A
    plugin that does not load or fit is logged and left out.

    Raises:
        ConfigError: the backend lacks a hook, or has one with other arguments.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Backend)
    manager.add_hookspecs(HostSpec)
    manager.add_hookspecs(JobControlSpec)
    manager.add_hookspecs(SinkBackend)
    try:
        manager.register(backend, name="backend")
    except pluggy.PluginValidationError as error:
        raise ConfigError(f"backend {backend!r} does not fit: {error}") from error
    lacking = sorted(name for name in BACKEND_HOOKS if not _implementations(manager, name))
    if lacking:
        raise ConfigError(f"backend {backend!r} has no hook {', '.join(lacking)}")
    for entry in entry_points(group=PLUGINS):
        try:
            manager.register(entry.load(), name=entry.name)
        except Exception:
            logger.exception(
                "loader: plugin left out name=%s from=%s", entry.name, _distribution(entry)
            )
    # pluggy calls the plugin that was registered last first.
    for plugin in plugins:
        try:
            manager.register(plugin)
        except Exception:
            logger.exception("loader: plugin left out plugin=%r", plugin)
    return manager


def bind_hooks(manager: pluggy.PluginManager) -> Backend:
    """Return the backend with the plugins that wrap it, and its reads checked.

    A hook of the backend alone is the backend's own method, for a call through
    pluggy costs microseconds. A hook in which a plugin takes part is called
    through pluggy. Plugins that are registered later are not seen.
    """
    # Outside the plugins: one that encrypts has decrypted before anything is checked.
    return check_reads(SimpleNamespace(**{name: _bind(manager, name) for name in BACKEND_HOOKS}))


def bind_sinks(manager: pluggy.PluginManager) -> SinkBackend | None:
    """Return the hooks for sinks, with the plugins that wrap them; None: the backend has none."""
    backend = manager.get_plugin("backend")
    found = {name for name in SINK_HOOKS if _is_backends(manager, name)}
    if not found:
        return None
    if lacking := sorted(set(SINK_HOOKS) - found):
        raise ConfigError(f"backend {backend!r} has no hook {', '.join(lacking)}")
    return cast(SinkBackend, SimpleNamespace(**{name: _bind(manager, name) for name in SINK_HOOKS}))


def _is_backends(manager: pluggy.PluginManager, name: str) -> bool:
    return any(one.plugin_name == "backend" for one in _implementations(manager, name))


def _bind(manager: pluggy.PluginManager, name: str) -> Callable[..., Any]:
    implementations = _implementations(manager, name)
    [backend] = [one for one in implementations if one.plugin_name == "backend"]
    if len(implementations) == 1:
        return backend.function
    hook = getattr(manager.hook, name)
    fresh = _FRESH_ARGUMENT.get(name)

    @functools.wraps(backend.function)
    def call(*values: Any) -> Any:
        if fresh is not None:
            values = fresh(*values)
        return hook(**dict(zip(backend.argnames, values, strict=True)))

    return call


_FRESH_ARGUMENT: dict[str, Callable[..., tuple[Any, ...]]] = {
    "publish": lambda drafts: (list(drafts),),
    "subscribe": lambda topic, sink: (topic, SinkProxy(sink)),
}
"""Arguments that a plugin may change, made anew for each call: a retry is not changed twice."""


def _implementations(manager: pluggy.PluginManager, hook: str) -> list[pluggy.HookImpl]:
    return list(getattr(manager.hook, hook).get_hookimpls())


def _distribution(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
