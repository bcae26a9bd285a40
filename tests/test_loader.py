"""One backend is chosen by name, from any distribution; a broken plugin is left out."""

import json
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from semantik_realtime.backends import loader
from semantik_realtime.backends.loader import (
    BACKENDS,
    PLUGINS,
    backend_names,
    bind_hooks,
    build_plugins,
    load_backend,
)
from semantik_realtime.backends.memory import MemoryBackend
from semantik_realtime.config import Settings
from semantik_realtime.errors import ConfigError
from semantik_realtime.hookspecs import BACKEND_HOOKS, hookimpl


def install(
    folder: Path,
    name: str,
    entry_points: Mapping[str, Mapping[str, str]],
    modules: Mapping[str, str],
) -> None:
    """Put a distribution into ``folder`` as an installer does: its modules and its dist-info."""
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(textwrap.dedent(text))
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, entries in entry_points.items():
        lines += [f"[{group}]", *(f"{entry} = {value}" for entry, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def settings(backend: str, **given: object) -> Settings:
    return Settings(backend=backend, **given)


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A folder of installed distributions that this process can see."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_bundled_backends_are_found_by_entry_point():
    assert {"memory", "redis"} <= set(backend_names())
    assert isinstance(load_backend(settings("memory")), MemoryBackend)


def test_an_unknown_name_is_an_error_that_names_the_installed_backends():
    with pytest.raises(ConfigError) as wrong:
        load_backend(settings("nope"))
    for part in ("'nope'", "memory", "redis", "SEMANTIK_REALTIME_BACKEND"):
        assert part in str(wrong.value)


def test_a_misspelt_name_is_answered_with_the_nearest_one():
    with pytest.raises(ConfigError, match="'rediss', did you mean 'redis'"):
        load_backend(settings("rediss"))
    with pytest.raises(ConfigError) as far:
        load_backend(settings("kafka"))
    assert "did you mean" not in str(far.value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("not_there:Backend", "ModuleNotFoundError"),
        ("torn_module:Backend", "ZeroDivisionError"),
        ("torn_module_two:Nothing", "AttributeError"),
        ("torn_module_two:picky", "TypeError"),
        ("torn_module_two:NUMBER", "TypeError"),
    ],
)
def test_a_broken_distribution_is_an_error_that_names_it_and_the_reason(value, reason, site):
    modules = {
        "torn_module": "1 / 0",
        "torn_module_two": "NUMBER = 5\ndef picky(): pass",
    }
    install(site, "torn-dist", {BACKENDS: {"torn": value}}, modules)
    with pytest.raises(ConfigError, match=rf"'torn' from torn-dist 1\.0 .*{reason}"):
        load_backend(settings("torn"))
    assert "torn" in backend_names()
    assert isinstance(load_backend(settings("memory")), MemoryBackend)


def test_a_config_error_of_a_backend_is_raised_unchanged(site):
    text = """
    from semantik_realtime.errors import ConfigError
    def make(settings):
        raise ConfigError("set the flux URL")
    """
    install(site, "flux", {BACKENDS: {"flux": "flux_module:make"}}, {"flux_module": text})
    with pytest.raises(ConfigError, match=r"^set the flux URL$"):
        load_backend(settings("flux"))


def test_two_distributions_that_claim_one_name_are_an_error_that_names_both(site):
    for number in ("one", "two"):
        install(
            site,
            f"twin-{number}",
            {BACKENDS: {"twin": f"twin_{number}:make"}},
            {f"twin_{number}": "def make(settings): return object()"},
        )
    with pytest.raises(ConfigError, match="claimed by several") as wrong:
        load_backend(settings("twin"))
    assert "twin-one 1.0" in str(wrong.value)
    assert "twin-two 1.0" in str(wrong.value)


@pytest.mark.parametrize(
    "url", ["localhost:6379", "http://localhost", "redis://localhost:port/0", "rubbish", "://"]
)
def test_a_wrong_url_of_the_redis_backend_is_a_config_error(url):
    with pytest.raises(ConfigError, match="URL"):
        load_backend(settings("redis", url=url))


def test_an_error_about_a_url_does_not_show_its_password():
    with pytest.raises(ConfigError) as wrong:
        load_backend(settings("redis", url="redis://:hunter2@localhost:port/0"))
    assert "hunter2" not in str(wrong.value)


HOOKS = sorted(BACKEND_HOOKS)


@pytest.mark.parametrize("lacking", HOOKS)
def test_a_backend_that_lacks_a_hook_is_refused_and_the_hook_is_named(lacking):
    hooks = {name: vars(MemoryBackend)[name] for name in HOOKS if name != lacking}
    backend = type("Partial", (), hooks)()
    with pytest.raises(ConfigError, match=f"has no hook {lacking}$"):
        build_plugins(backend)


def test_a_method_that_is_not_marked_is_no_hook():
    hooks = {name: vars(MemoryBackend)[name] for name in HOOKS}
    hooks["delete"] = lambda self, topic: True
    with pytest.raises(ConfigError, match=r"has no hook delete$"):
        build_plugins(type("Unmarked", (), hooks)())


def test_a_backend_with_a_hook_that_does_not_fit_is_refused():
    class Misfitting(MemoryBackend):
        @hookimpl
        def publish(self, shoe_size):
            return []

    with pytest.raises(ConfigError, match="shoe_size"):
        build_plugins(Misfitting(settings("memory")))


def memory() -> MemoryBackend:
    return MemoryBackend(settings("memory"))


class Host:
    """Authenticates every user as itself."""

    def __init__(self, name: str) -> None:
        self.name = name

    @hookimpl
    def authenticate(self, credentials):
        return self.name


class Misfit:
    """One hook fits, the other has an unknown argument."""

    @hookimpl
    def authenticate(self, credentials):
        return "misfit"

    @hookimpl
    def authorize(self, user, shoe_size):
        return True


def test_plugins_are_called_the_last_given_first():
    manager = build_plugins(memory(), [Host("one"), Host("two")])
    assert manager.hook.authenticate(credentials=None) == "two"


def test_a_plugin_with_a_wrong_hook_is_logged_and_none_of_its_hooks_used(caplog):
    with caplog.at_level(logging.ERROR, "semantik_realtime.backends.loader"):
        manager = build_plugins(memory(), [Host("one"), Misfit(), Host("two")])
    assert "plugin left out" in caplog.text
    assert "shoe_size" in caplog.text
    assert not any(isinstance(plugin, Misfit) for plugin in manager.get_plugins())
    answering = [impl.plugin for impl in manager.hook.authenticate.get_hookimpls()]
    assert [plugin.name for plugin in answering] == ["one", "two"]


def test_a_broken_plugin_of_the_group_is_logged_and_left_out(site, caplog):
    good = """
    from semantik_realtime.hookspecs import hookimpl
    @hookimpl
    def authenticate(credentials):
        return "good"
    """
    install(site, "good-host", {PLUGINS: {"good": "good_host"}}, {"good_host": good})
    install(site, "bad-host", {PLUGINS: {"bad": "bad_host"}}, {"bad_host": "1 / 0"})
    install(site, "gone-host", {PLUGINS: {"gone": "gone_host"}}, {})
    with caplog.at_level(logging.ERROR, "semantik_realtime.backends.loader"):
        manager = build_plugins(memory())
    assert "plugin left out name=bad from=bad-host 1.0" in caplog.text
    assert "plugin left out name=gone from=gone-host 1.0" in caplog.text
    assert manager.has_plugin("good")
    assert not manager.has_plugin("bad")
    assert manager.hook.authenticate(credentials=None) == "good"
    # A plugin that is given in code is called before those of entry points.
    with_given = build_plugins(memory(), [Host("given")])
    assert with_given.hook.authenticate(credentials=None) == "given"


def test_a_plugin_of_the_group_cannot_take_the_place_of_the_backend(site, caplog):
    text = """
    from semantik_realtime.hookspecs import hookimpl
    @hookimpl
    def publish(drafts):
        return ["stolen"]
    """
    install(site, "thief", {PLUGINS: {"backend": "thief"}}, {"thief": text})
    with caplog.at_level(logging.ERROR, "semantik_realtime.backends.loader"):
        manager = build_plugins(memory())
    assert "plugin left out name=backend from=thief 1.0" in caplog.text
    assert manager.hook.publish(drafts=[]) == []


def test_a_hook_of_the_backend_alone_is_its_own_method_and_a_wrapped_one_is_not(monkeypatch):
    # A plugin that happens to be installed here may wrap hooks too.
    monkeypatch.setattr(loader, "PLUGINS", "nothing.is.registered.here")

    class Watcher:
        @hookimpl(wrapper=True)
        def publish(self, drafts):
            return (yield)

    backend = memory()
    assert bind_hooks(build_plugins(backend)).publish == backend.publish
    wrapped = bind_hooks(build_plugins(backend, [Watcher()]))
    assert wrapped.publish != backend.publish
    assert wrapped.delete == backend.delete


STRANGER = '''
"""A backend by somebody else: lists in this process, nothing more."""

from semantik_realtime.core.event import (
    Cursor, Event, Outcome, Receipt, StateChange, link, with_offset,
)
from semantik_realtime.hookspecs import Page, Snapshot, Status, Top, hookimpl


class StrangersBackend:
    def __init__(self, settings):
        self.logs = {}
        self.states = {}
        self.retention_events = settings.retention_events

    def end(self, topic):
        events = self.logs.get(topic)
        return Cursor("strange", events[-1].offset, events[-1].chain) if events else None

    @hookimpl
    def publish(self, drafts):
        return [Receipt(Outcome.APPENDED, self.append(draft)) for draft in drafts]

    def append(self, draft):
        last = self.end(draft.topic) or Cursor("strange", 0, 0)
        offset, chain = last.offset + 1, link(last.chain, draft.digest)
        event = Event(offset, chain, with_offset(draft.body, offset))
        self.logs.setdefault(draft.topic, []).append(event)
        if draft.change is StateChange.SET:
            self.states.setdefault(draft.topic, {})[draft.key] = event.json
        return Cursor("strange", offset, chain)

    @hookimpl
    async def snapshot(self, topic, after, history):
        events = self.logs.get(topic, [])
        newest = events[len(events) - history:]
        return Snapshot(self.end(topic), states=self.states.get(topic, {}), events=newest)

    @hookimpl
    async def page(self, topic, after, limit):
        events = [event for event in self.logs.get(topic, []) if event.offset > after]
        return Page(self.end(topic), events[:limit], len(events) > limit)

    @hookimpl
    async def tops(self, topics):
        return {topic: Top(self.end(topic)) for topic in topics if topic in self.logs}

    @hookimpl
    def claim(self, topic, job, token, owner):
        return 1

    @hookimpl
    def delete(self, topic):
        return self.logs.pop(topic, None) is not None

    @hookimpl
    def lease(self, name, holder, limit, seconds):
        return True

    @hookimpl
    def release(self, name, holder):
        return True

    @hookimpl
    def hold(self, holder, jobs, ended, seconds):
        return True

    @hookimpl
    def overdue(self, seconds):
        return []

    @hookimpl
    async def subscribe(self, topic, sink):
        pass

    @hookimpl
    async def unsubscribe(self, topic):
        pass

    @hookimpl
    async def open(self):
        pass

    @hookimpl
    async def close(self):
        pass

    @hookimpl
    def close_writer(self):
        pass

    @hookimpl
    async def status(self):
        return Status("strange", True)
'''

USE = """
import asyncio, json
from semantik_realtime.backends.loader import backend_names
from semantik_realtime.runtime import Runtime

async def use():
    runtime = Runtime()
    receipt = await runtime.publish("job:42", "job_progress", state={"status": "running"})
    await runtime.backend.open()
    seen = await runtime.backend.snapshot("job:42", None, 10)
    await runtime.backend.close()
    runtime.close()
    return {
        "names": backend_names(),
        "backend": type(runtime.unguarded).__name__,
        "outcome": receipt.outcome,
        "cursor": str(seen.cursor),
        "states": {key: json.loads(event)["state"] for key, event in seen.states.items()},
        "history": [event.offset for event in seen.events],
    }

print(json.dumps(asyncio.run(use())))
"""


def test_a_backend_of_another_distribution_is_chosen_by_a_variable_and_used(tmp_path):
    install(
        tmp_path,
        "strangers-backend",
        {BACKENDS: {"strange": "strangers_module:StrangersBackend"}},
        {"strangers_module": STRANGER},
    )
    own = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", USE],
        env={
            "PYTHONPATH": os.pathsep.join([str(tmp_path), own]),
            "SEMANTIK_REALTIME_BACKEND": "strange",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert {"memory", "redis", "strange"} <= set(answer.pop("names"))
    chain = answer["cursor"].removeprefix("strange.1.")
    assert answer == {
        "backend": "StrangersBackend",
        "outcome": "appended",
        "cursor": f"strange.1.{chain}",
        "states": {"42": {"status": "running"}},
        "history": [1],
    }
