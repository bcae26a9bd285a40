"""The numbers that bound what a process keeps, reads and sends. Settings override some of them."""

from __future__ import annotations

MAX_REPLAY = 1000
"""Most events of a replay; beyond that a snapshot is cheaper for everyone."""
MAX_HISTORY = MAX_REPLAY
"""Most events of history that a client may ask for beside a snapshot."""
COMPAT_HISTORY = 100
"""Events of history that a client of the compatibility wire gets after the states, unless the
settings say otherwise."""
MAX_READ_BYTES = 2**20
"""Most bytes of the events in one answer, unless the settings say otherwise."""
RETENTION_EVENTS = MAX_REPLAY
"""Events that a topic's log keeps, unless the settings say otherwise."""
MAX_KEYS = 1000
"""States that a topic keeps, unless the settings say otherwise."""
MAX_EVENT_BYTES = 64 * 1024
"""Largest encoded event, unless the settings say otherwise."""
MAX_DEPTH = 100
"""How deeply the values of an event may be nested: many JSON parsers end at a thousand levels."""
MAX_FRAME_BYTES = 64 * 1024
"""Largest frame of a client, on both wires."""
MAX_TOPICS = 100
"""Topics that a connection may watch, unless the settings say otherwise."""
MAX_BAD_FRAMES = 10
"""Unreadable frames after which a connection is closed."""
BURST_PER_TOPIC = 3
"""Units that a connection may send at once, for each topic that it may watch."""
UNITS_PER_TOPIC_SECOND = 0.5
"""Units that it may send in a second after that, for each topic that it may watch."""
AUTH_UNITS = 100
"""What a refresh of the credential costs: the host is asked, and every topic is checked again."""
FLOOD_SECONDS = 10.0
"""How long a client may send more than its units before its connection is closed."""
MAX_READING_JOINS = 4
"""Topics that a connection reads from the backend at once; further ones wait for their turn."""
MAX_UNAUTHENTICATED = 200
"""WebSockets of a process that may wait for a credential, unless the settings say otherwise."""

KEPT_PRODUCERS = 256
"""Producers whose last number a topic remembers for as long as it lives, to recognize a draft that
is sent again: those that appended last."""
PRODUCER_SECONDS = 86_400.0
"""How long it remembers the others, from their last append on: as long as a retry may take."""
MAX_PRODUCERS = 4096
"""Most producers that it remembers, about 100 bytes each."""
MAX_HOLDER_CHARACTERS = 200
"""Most characters of the name under which a worker process holds its jobs."""
MAX_HELD_RECORD_BYTES = 4096
"""Most bytes that are kept of a job which a worker process holds."""
MAX_HELD_JOBS_A_CALL = 10_000
"""Most jobs that one call of ``hold`` adds, and most that it removes."""
MAX_GIVEN_HOLDERS = 16
"""Most holders that one call of ``overdue`` returns."""
MAX_GIVEN_JOBS = 1000
"""Jobs after which a call of ``overdue`` returns no further holder. The last one may exceed it."""
MAX_PACED_KEYS = 10_000
"""Keys whose last progress a process remembers, to pace the next one."""

SINK_EVENTS = 100_000
"""Events that the queue of a sink keeps, unless the settings say otherwise."""

SPOOL_DRAFTS = 10_000
"""Drafts that may wait in a process, unless the settings say otherwise."""
SPOOL_BYTES = 16 * 2**20
"""Bytes of the drafts that may wait in a process, unless the settings say otherwise."""

LEASE_SECONDS = 30.0
"""After how long a job is lost whose process has died, unless the settings say otherwise."""
QUEUED_SECONDS = 86_400.0
"""After how long a job is lost that no worker begins, unless the settings say otherwise."""

LOG_BURST = 100
"""Log records of a job that may be sent at once."""
LOG_PER_SECOND = 10.0
"""Log records of a job that may be sent in a second after that; the others are counted."""
MAX_LOG_CHARACTERS = 2000
"""What is kept of the message of a log record."""

KEEP_EVENTS = 100
"""Recent events that a channel keeps even when every watcher has them."""
PIECE_BYTES = 64 * 1024
"""Events of a topic that are sent in one frame, in bytes; a single event may be larger."""
SLOW_WRITE_SECONDS = 0.25
"""A connection is slow if its client's socket took longer for a frame of up to `PIECE_BYTES`, or in
proportion for a larger one."""
CONFLATE_ABOVE_BYTES = 64 * 1024
"""Unsent bytes of a slow connection above which its events are conflated."""
EVICT_ABOVE_BYTES = 2**20
"""Unsent bytes of a slow connection above which it is closed."""
SPARE_BYTES = 4 * EVICT_ABOVE_BYTES
"""Bytes of events that a channel keeps for connections that are not slow."""
DRAIN_WRITE_SECONDS = 1.0
"""How long a drained connection may send what waits for it. Later the web server would close the
socket, with a code of its own after which pages of the compatibility wire never return."""
STALL_SECONDS = 30.0
"""How long one write to a connection may take before the connection is closed."""
MAX_HELD_BATCHES = 1000
"""Live batches that a channel holds until its position is known."""
MAX_POSTED = 1000
"""Frames that may wait for a connection beside events: answers, syncs, heartbeats."""
MAX_POSTED_BYTES = 16 * 2**20
"""Bytes of those frames. The last one may exceed it, for a snapshot has no limit."""
COLLECT_BYTES = EVICT_ABOVE_BYTES
"""Above so many bytes a connection sends what it has collected before it collects more."""
