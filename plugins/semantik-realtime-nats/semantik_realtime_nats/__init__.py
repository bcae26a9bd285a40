"""NATS JetStream as a backend of semantik-realtime.

The model: one stream; a topic is a few subjects in it.

``<prefix>.topic.<topic>.log``
    The topic's log. Each append is *one* message: a line of JSON with the
    facts that the fence needs, then the bodies of the events. It is published
    on condition that the log's last message still has the sequence that the
    writer knows (expected last subject sequence), so it is atomic, and of two
    writers the second gets a conflict, reads what the first appended and tries
    again. The line has offset, chain and owner, so offsets are dense. The
    server republishes these messages on ``<prefix>.live.<topic>``, where
    watchers get them without any JetStream consumer.

``<prefix>.topic.<topic>.checkpoint``, ``<prefix>.topic.<topic>.state.<key>``
    The log up to some position, so that it need not be read from its
    beginning: a checkpoint has the fence, the keys, and an index from offsets
    to the stream's sequences; a state is a key's last event with a state. A
    writer stores them after an append when the last checkpoint is 64 events
    old: first the states that changed, then the checkpoint, all on condition
    that the log's last message is still its own, so an outdated writer
    overwrites nothing. What was appended after the checkpoint is folded from
    the log; if a checkpoint fails, that is a little more.

``<prefix>.lease.<name>``
    The places of a lease, with a time to live; and sessions, which lengthen all
    places of a process.

``<prefix>.held.<worker process>``
    The jobs that a worker process holds, and its deadline.

What follows: a writer knows a topic by folding its log (`ledger.Ledger`) and
keeps the ledger between appends, so an append is one round trip. A snapshot is
read in any order and then verified: the ledger knows the offset of each key's
last event with a state. A state that is newer or missing was replaced during
the read, and the event that replaced it is in the log that follows.

A topic without an append for the retention is unknown from then on, by the
server's clock; its messages are purged by the next append to it or by `sweep`.

Modules: `records`, `ledger`, `held` and `places` (pure) say what is stored and what
it means. `client`, `connection` and `stream` talk to the server; `clock` and
`freshness` know its time and how new a read must be. `log` and `snapshot` read, with
`top_cache`; `topic_writer`, `lease`, `sessions`, `leases`, `holders`, `writer` and
`sweep` write, `subscriber` gets live events. `backend` has the hooks.
"""
