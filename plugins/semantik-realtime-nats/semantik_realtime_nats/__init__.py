"""NATS JetStream as a backend of semantik-realtime.

The model: one stream; for each topic a few subjects in it.

``<prefix>.topic.<topic>.log``
    The truth. An append is *one* message: a line with the fence's facts, then
    the bodies of the events. It is published with the sequence of the log's
    last message as a condition (expected last subject sequence), so it is
    atomic and has its place: who loses a race reads what the other wrote and
    tries again. Offsets are dense, the chain and the owner are in the line.
    The server republishes these messages on ``<prefix>.live.<topic>``: that is
    the live feed, and no consumer is needed.

``<prefix>.topic.<topic>.base``, ``<prefix>.topic.<topic>.state.<key>``
    What the log says up to some place, so that nobody reads it from its
    beginning: the fence, the keys, where in the stream to find which offsets;
    and for each key its last event with a state. Every 64 events or more, the
    writer that just appended *settles*: it writes the states that changed and,
    when they are stored, the base. Both are conditional on the log's last
    message still being its own, so an outdated writer overwrites nothing. What
    came after the base is folded from the log; if a settling fails, that is a
    little more.

``<prefix>.lease.<name>``
    The holders of a lease, with a time to live.

What follows: a writer knows a topic by folding its log (`ledger.Ledger`) and
keeps that between appends, so an append is one round trip. A snapshot is read
in any order and then proved: the ledger knows the offset of every key's last
event, so a state that is newer or missing was settled meanwhile, and its event
is in the log that came since.

A topic that was not appended to for the retention is unknown from then on, by
the server's clock; its messages are purged by the next append to it or by
`sweep`.
"""
