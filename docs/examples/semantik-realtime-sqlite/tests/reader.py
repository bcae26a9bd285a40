"""Watch a topic until killed; print each event as JSON: its writer, number and offset."""

import asyncio
import json
import sys

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.config import load_settings


class Printer:
    """A sink that prints every call."""

    def events(self, topic, prev, events):
        for event in events:
            data = json.loads(event.json)["data"]
            print_json([data["by"], data["n"], event.offset])

    def interrupted(self, topic):
        print_json("interrupted")

    def gone(self, topic):
        print_json("gone")


def print_json(value):
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


async def watch(url, topic):
    backend = load_backend(load_settings(backend="sqlite", url=url))
    await backend.open()
    await backend.subscribe(topic, Printer())
    print_json("watching")
    await asyncio.Event().wait()


asyncio.run(watch(*sys.argv[1:]))
