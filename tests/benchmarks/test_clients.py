"""The clients notice every event that is lost, doubled or late, on every wire."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

import msgspec
import pytest

from benchmarks.clients import Client
from benchmarks.measurement import DeliveryErrors
from benchmarks.traffic import FIRST_OFFSET, Template
from benchmarks.wires import BareWire, NativeWire, Reader, SocketIoWire, Wire

TOPIC = "job:4af1"
WIRES: list[Wire] = [NativeWire(), SocketIoWire(), BareWire()]


class Server:
    """The other end of a client's socket: sends the frames of a server."""

    def __init__(self, wire: Wire) -> None:
        self.socket, near = socket.socketpair()
        self.client = Client(near, Reader(wire, TOPIC))
        self._wire = wire
        self._template = Template("4af1")

    def close(self) -> None:
        self.socket.close()
        self.client.socket.close()

    def join(self) -> None:
        if isinstance(self._wire, NativeWire):
            cursor = f"e.{FIRST_OFFSET - 1}.00000000"
            self.send_json(
                {"op": "sync", "topic": TOPIC, "cursor": cursor, "offset": FIRST_OFFSET - 1}
            )
        elif isinstance(self._wire, SocketIoWire):
            self.send(b'430["watching"]')

    def send_events(self, numbers: Sequence[int]) -> None:
        """Send one event at a time."""
        for number in numbers:
            self.socket.sendall(self.stream([self._template.event(number)]))
            self.client.receive()

    def stream(self, events: Sequence[dict[str, object]]) -> bytes:
        """Return the bytes of events: on our wire in one frame, on the others one frame each."""
        if isinstance(self._wire, NativeWire):
            return frame(msgspec.json.encode(batch(events)))
        mark = b"42" if isinstance(self._wire, SocketIoWire) else b""
        bodies = [["event", event] if mark else event for event in events]
        return b"".join(frame(mark + msgspec.json.encode(body)) for body in bodies)

    def send_json(self, value: object) -> None:
        self.send(msgspec.json.encode(value))

    def send(self, payload: bytes) -> None:
        self.socket.sendall(frame(payload))
        self.client.receive()


def batch(events: Sequence[dict[str, object]]) -> dict[str, object]:
    """Return the content of a frame of our wire."""
    return {"op": "events", "topics": {TOPIC: {"cursor": "e.9.00000000", "events": events}}}


def frame(payload: bytes) -> bytes:
    """Return a text frame from a server (RFC 6455, 5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((0x81, size)) + payload
    if size < 2**16:
        return bytes((0x81, 126)) + size.to_bytes(2, "big") + payload
    return bytes((0x81, 127)) + size.to_bytes(8, "big") + payload


@pytest.fixture(params=WIRES, ids=lambda wire: type(wire).__name__)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(request.param)
    yield server
    server.close()


@pytest.fixture
def native() -> Iterator[Server]:
    server = Server(NativeWire())
    yield server
    server.close()


@pytest.mark.parametrize(
    ("numbers", "expected", "errors"),
    [
        ([0, 1, 2, 3], 4, DeliveryErrors()),
        ([0, 1, 3], 4, DeliveryErrors(lost=1)),
        ([0, 1, 2], 4, DeliveryErrors(lost=1)),
        ([], 4, DeliveryErrors(lost=4)),
        ([0, 1, 1, 2, 3], 4, DeliveryErrors(doubled=1)),
        ([0, 2, 1, 3], 4, DeliveryErrors(disordered=1)),
        ([0, 0, 3, 2], 4, DeliveryErrors(lost=1, doubled=1, disordered=1)),
    ],
)
def test_a_client_counts_lost_doubled_and_late_events_on_every_wire(
    server: Server, numbers: list[int], expected: int, errors: DeliveryErrors
) -> None:
    server.join()
    server.send_events(numbers)
    assert server.client.errors(expected) == errors


def test_a_gap_in_the_offsets_counts_as_lost_although_the_numbers_have_none(
    native: Server,
) -> None:
    native.join()
    events = [Template("4af1").event(number) for number in range(3)]
    events[2]["offset"] = FIRST_OFFSET + 3
    native.send_json(batch(events))
    assert native.client.errors(3) == DeliveryErrors(lost=1)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 40])
def test_frames_are_read_however_the_stream_is_split(server: Server, size: int) -> None:
    stream = server.stream([Template("4af1").event(number) for number in range(300)])
    head, rest = stream[:40], stream[40:]
    pieces = [head[start : start + size] for start in range(0, len(head), size)]
    for piece in [*pieces, rest]:
        server.socket.sendall(piece)
        server.client.receive()
    while server.client.received < 300:
        server.client.receive()
    assert server.client.errors(300) == DeliveryErrors()


def test_frames_with_the_same_beginning_are_not_confused() -> None:
    reader = Reader(NativeWire(), TOPIC)
    first, *ends = [Template("4af1").event(number) for number in (1, 7, 8)]
    for end, number in zip(ends, (7, 8), strict=True):
        payload = msgspec.json.encode(batch([first, end]))
        assert [event.data.n for event in reader.read(payload).events] == [1, number]


def test_a_socket_io_client_connects_joins_a_room_and_answers_pings() -> None:
    wire = SocketIoWire()
    assert wire.first_frame(TOPIC, None) == b"40"
    assert wire.read(b'0{"sid":"a"}', TOPIC).reply is None
    assert wire.read(b'40{"sid":"b"}', TOPIC).reply == b'420["watch","job:4af1"]'
    assert not wire.read(b'40{"sid":"b"}', TOPIC).joined
    assert wire.read(b'430["watching"]', TOPIC).joined
    assert wire.read(b"2", TOPIC).reply == b"3"


def test_a_client_that_resumes_counts_the_events_of_the_sync(native: Server) -> None:
    events = [Template("4af1").event(number) for number in range(3)]
    native.send_json({"op": "sync", "topic": TOPIC, "cursor": "e.5.00000000", "events": events})
    assert native.client.joined
    assert native.client.cursor == "e.5.00000000"
    assert native.client.errors(3) == DeliveryErrors()
    native.send_events([3])
    assert native.client.errors(4) == DeliveryErrors()
