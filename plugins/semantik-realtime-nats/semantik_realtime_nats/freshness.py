"""How much of the stream a process has seen, so that it reads nothing older in a cluster. Pure.

Any server that has a replica answers reads, and one may be behind: by a few
milliseconds, or, if it is cut off from the others, for as long as that lasts.
"""

from __future__ import annotations


class Seen:
    """The newest message that a process has stored. All its connections share it.

    >>> seen = Seen()
    >>> seen.stored("semantik.lease.1", 7, now=0.0, ttl_seconds=10)
    >>> seen.seq, seen.anchor(now=4.0), seen.anchor(now=6.0)
    (7, 'semantik.lease.1', None)
    >>> seen.stream_ends_at(5)
    >>> seen.seq, seen.anchor(now=4.0)
    (5, None)
    """

    def __init__(self) -> None:
        self.seq = 0
        """The stream's sequence of that message; what has a lower one is too old."""
        self._subject: str | None = None
        self._anchored_until = 0.0

    def stored(self, subject: str, seq: int, now: float, ttl_seconds: float | None) -> None:
        """Note a message that the stream has acknowledged.

        Args:
            subject: of the message.
            seq: its sequence.
            now: the steady clock, in seconds.
            ttl_seconds: how long the server keeps it; None: until it is replaced.
        """
        if seq > self.seq:
            self.seq = seq
            self._subject = subject
            self._anchored_until = now + (3600.0 if ttl_seconds is None else ttl_seconds / 2)

    def anchor(self, now: float) -> str | None:
        """Return a subject that has a message for sure, also if nothing else that is read has one.

        None: there is none.
        """
        return self._subject if now < self._anchored_until else None

    def stream_ends_at(self, seq: int) -> None:
        """The stream's leader says that its last sequence is ``seq``: it may have lost messages."""
        if seq < self.seq:
            self.seq, self._subject, self._anchored_until = seq, None, 0.0
