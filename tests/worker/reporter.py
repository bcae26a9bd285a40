"""A process that sends the events of jobs, as the lines of its standard input command.

``begin JOB``, ``emit JOB NUMBER``, ``progress JOB NUMBER``, ``end JOB``, ``flush``,
``recover``, ``fork``, ``status``: each is answered by a line of JSON about the process.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time

import msgspec

from semantik_realtime.runtime import Runtime
from semantik_realtime.worker.job import Job
from semantik_realtime.worker.job_meta import JobMeta


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    runtime = Runtime()
    emitter = runtime.emitter
    jobs: dict[str, Job] = {}
    child = 0
    for line in sys.stdin:
        command, *words = line.split()
        match command:
            case "begin":
                jobs[words[0]] = Job(runtime, JobMeta(words[0], owner="7"), 1)
                jobs[words[0]].begin()
            case "emit":
                jobs[words[0]].emit("note", number=int(words[1]))
            case "progress":
                jobs[words[0]].progress(int(words[1]), 1000)
            case "end":
                jobs[words[0]].end("job_completed")
            case "flush":
                emitter.flush(20)
            case "recover":
                emitter.recover()
            case "fork":
                reading, writing = os.pipe()
                child = os.fork()
                if child == 0:
                    os.write(writing, b"!")
                    # The child outlives its parent.
                    time.sleep(60)
                    os._exit(0)
                os.read(reading, 1)
        status = msgspec.structs.asdict(emitter.stats)
        status |= {"child": child, "failing": emitter.is_retrying, "waiting": emitter.waiting}
        print(json.dumps(status), flush=True)
    runtime.close()


if __name__ == "__main__":
    main()
