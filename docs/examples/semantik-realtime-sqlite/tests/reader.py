"""Watches a topic until it is killed; says each event: who wrote it, its number, its offset."""

import asyncio
import json
import sys

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.config import load_settings


class Printer:
    """A sink that says what it hears."""

    def events(self, topic, epoch, prev, events):
        for event in events:
            data = json.loads(event.json)["data"]
            say([data["by"], data["n"], event.offset])

    def interrupted(self, topic):
        say("interrupted")

    def gone(self, topic):
        say("gone")


def say(what):
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def watch(url, topic):
    backend = load_backend(load_settings(backend="sqlite", url=url))
    await backend.open()
    await backend.subscribe(topic, Printer())
    say("watching")
    await asyncio.Event().wait()


asyncio.run(watch(*sys.argv[1:]))
