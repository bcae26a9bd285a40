"""Publish numbered batches until killed; print each number once the batch is acknowledged."""

import json
import sys

from semantik_realtime.backends.loader import load_backend
from semantik_realtime.config import load_settings
from semantik_realtime.core.event import Outcome
from semantik_realtime.testing.contract import Author

url, topic, name, size = sys.argv[1:]
backend = load_backend(load_settings(backend="sqlite", url=url, retention_events=100_000))
author = Author(name)
number = 0
while True:
    drafts = [author.draft(topic, data={"by": name, "n": number}) for _ in range(int(size))]
    receipts = backend.publish(drafts)
    assert {receipt.outcome for receipt in receipts} == {Outcome.APPENDED}
    sys.stdout.write(json.dumps(number) + "\n")
    sys.stdout.flush()
    number += 1
