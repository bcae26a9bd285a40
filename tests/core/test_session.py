"""The state machine of a connection: every input has its effect, and none raises."""

import json

import pytest
from histories import json_texts, json_values
from hypothesis import example, given
from hypothesis import strategies as st

from semantik_realtime.core.event import Cursor
from semantik_realtime.core.limits import MAX_HISTORY
from semantik_realtime.core.session import (
    MAX_BAD_FRAMES,
    TRANSITIONS,
    Authenticate,
    Close,
    CloseCode,
    Phase,
    Send,
    Session,
    SessionLimits,
    Subscribe,
    Trigger,
    Unsubscribe,
    close_reason,
)
from semantik_realtime.core.topic import check_topic

LIMITS = SessionLimits(topics=3, frame_bytes=2000, auth_seconds=10.0, heartbeat_seconds=20.0)


def waiting():
    return Session("s1", LIMITS, now=100.0)


def opened():
    session = waiting()
    session.authenticated()
    return session


def send(session, **frame):
    return session.receive(json.dumps(frame))


def code_of(actions):
    """The code of a single ``error`` frame."""
    [action] = actions
    assert isinstance(action, Send), action
    frame = json.loads(action.frame)
    assert frame["op"] == "error"
    assert set(frame) == {"op", "code", "message"}
    return frame["code"]


def bad_frames(session, count):
    """Send ``count`` unreadable frames; return the actions of the last."""
    return [session.receive("rubbish") for _ in range(count)][-1]


def closed():
    session = opened()
    session.rejected(False, "no")
    return session


INPUTS = {
    "auth": lambda session: send(session, op="auth", token="t"),
    "subscribe": lambda session: send(session, op="subscribe", topics={"job:1": None}),
    "unsubscribe": lambda session: send(session, op="unsubscribe", topics=["job:1"]),
    "ping": lambda session: send(session, op="ping"),
    "dance": lambda session: send(session, op="dance"),
    "ACCEPTED": lambda session: send(session, op="ACCEPTED"),
    Trigger.ACCEPTED: lambda session: session.authenticated(),
    Trigger.REFUSED: lambda session: session.rejected(False, "no"),
    Trigger.EXPIRED: lambda session: session.rejected(True, "old"),
    Trigger.NO_AUTH: lambda session: session.tick(110.0),
    Trigger.BAD_FRAME: lambda session: bad_frames(session, 1),
    Trigger.TOO_MANY_BAD_FRAMES: lambda session: bad_frames(session, MAX_BAD_FRAMES),
    Trigger.TOO_BIG_FRAME: lambda session: session.receive("x" * 2001),
}
NO_TRANSITION = (None, "unauthenticated", "unknown_op")
# The effects in WAITING and in OPEN.
EFFECTS = {
    "auth": (Authenticate, Authenticate),
    "subscribe": ("unauthenticated", Subscribe),
    "unsubscribe": ("unauthenticated", Unsubscribe),
    "ping": ("unauthenticated", "pong"),
    "dance": ("unauthenticated", "unknown_op"),
    "ACCEPTED": ("unauthenticated", "unknown_op"),
    Trigger.ACCEPTED: ("welcome", None),
    Trigger.REFUSED: (CloseCode.UNAUTHENTICATED, CloseCode.UNAUTHENTICATED),
    Trigger.EXPIRED: (CloseCode.EXPIRED, CloseCode.EXPIRED),
    Trigger.NO_AUTH: (CloseCode.AUTH_TIMEOUT, None),
    Trigger.BAD_FRAME: ("bad_frame", "bad_frame"),
    Trigger.TOO_MANY_BAD_FRAMES: (CloseCode.BAD_FRAME, CloseCode.BAD_FRAME),
    Trigger.TOO_BIG_FRAME: (CloseCode.TOO_BIG, CloseCode.TOO_BIG),
}
PAIRS = [
    *((waiting, trigger, effects[0]) for trigger, effects in EFFECTS.items()),
    *((opened, trigger, effects[1]) for trigger, effects in EFFECTS.items()),
    *((closed, trigger, None) for trigger in EFFECTS),
]


def kind_of(actions):
    """Return what the actions are: None, a close code, the op or error of a frame, or a type."""
    if not actions:
        return None
    [action] = actions
    if isinstance(action, Close):
        return action.code
    if isinstance(action, Send):
        frame = json.loads(action.frame)
        return frame.get("code", frame["op"])
    return type(action)


@pytest.mark.parametrize(("make", "trigger", "effect"), PAIRS)
def test_every_phase_has_its_effect_for_every_trigger(make, trigger, effect):
    session = make()
    session.topics.add("job:1")
    before = session.phase
    assert kind_of(INPUTS[trigger](session)) == effect
    ends = {"welcome": Phase.OPEN} | dict.fromkeys(CloseCode, Phase.CLOSED)
    assert session.phase is ends.get(effect, before)
    assert ((before, trigger) in TRANSITIONS) == (effect not in NO_TRANSITION)


def test_every_trigger_of_the_table_is_tried_here():
    assert {trigger for _, trigger in TRANSITIONS} <= set(INPUTS)
    assert set(Trigger) <= set(INPUTS)
    assert {phase for phase, _ in TRANSITIONS} == {Phase.WAITING, Phase.OPEN}


near_frames = st.fixed_dictionaries(
    {
        "op": st.sampled_from(["auth", "subscribe", "unsubscribe", "ping", "dance"]) | json_values,
    },
    optional={
        "token": st.just("t") | json_values,
        "topics": json_values
        | st.dictionaries(
            st.sampled_from(["job:1", "job:2", "user:7", "a:1", "b:2"]) | json_texts,
            st.none() | st.just("e.1.00000000") | json_values,
        )
        | st.lists(st.sampled_from(["job:1", "job:2"]) | json_values),
        "history": st.integers(-1, 1001) | json_values,
    },
)
inputs = (
    st.text()
    | st.binary()
    | json_values.map(json.dumps)
    | near_frames.map(json.dumps)
    | near_frames.map(json.dumps)
    | st.just("x" * 2001)
)
steps = st.lists(
    inputs | st.sampled_from(["authenticated", "rejected", "expired", "tick", "late tick"]),
    max_size=30,
)


@given(steps)
@example(["authenticated", '{"op":"\ud800"}', b"\xff\xfe", "[" * 1999])
def test_no_input_raises_and_every_action_can_be_performed(steps):
    session = waiting()
    calls = {
        "authenticated": session.authenticated,
        "rejected": lambda: session.rejected(False, "no"),
        "expired": lambda: session.rejected(True, "no"),
        "tick": lambda: session.tick(101.0),
        "late tick": lambda: session.tick(111.0),
    }
    for step in steps:
        before = session.phase
        call = calls.get(step) if isinstance(step, str) else None
        actions = call() if call else session.receive(step)
        if before is Phase.CLOSED:
            assert actions == []
        for action in actions:
            match action:
                case Send(frame):
                    assert isinstance(json.loads(frame), dict)
                    frame.encode()
                case Authenticate(token):
                    assert token
                case Subscribe(topics, history):
                    assert before is Phase.OPEN
                    assert topics
                    assert all(check_topic(topic) for topic in topics)
                    assert all(one is None or isinstance(one, Cursor) for one in topics.values())
                    assert type(history) is int
                    assert 0 <= history <= MAX_HISTORY
                    assert topics.keys() <= session.topics
                case Unsubscribe(topics):
                    assert before is Phase.OPEN
                    assert not session.topics & set(topics)
                case Close():
                    assert session.phase is Phase.CLOSED
                    assert actions[-1] is action
        assert (session.phase is Phase.CLOSED) == (
            before is Phase.CLOSED or any(isinstance(action, Close) for action in actions)
        )
        assert len(session.topics) <= LIMITS.topics


@pytest.mark.parametrize("op", ["subscribe", "unsubscribe", "ping", "dance"])
def test_before_auth_every_other_op_is_refused_and_has_no_effect(op):
    session = waiting()
    assert code_of(send(session, op=op, topics={"job:1": None})) == "unauthenticated"
    assert session.phase is Phase.WAITING
    assert session.topics == set()


def test_a_token_is_authenticated_and_the_welcome_states_the_limits():
    session = waiting()
    assert send(session, op="auth", token="t") == [Authenticate("t")]
    [welcome] = session.authenticated()
    assert json.loads(welcome.frame) == {
        "op": "welcome",
        "session": "s1",
        "heartbeat_seconds": 20.0,
        "limits": {"topics": 3, "frame_bytes": 2000, "burst": 300, "per_second": 50},
    }
    assert send(session, op="ping") == [Send('{"op":"pong"}')]


def test_a_refreshed_token_is_authenticated_without_a_second_welcome():
    session = opened()
    assert send(session, op="auth", token="t2") == [Authenticate("t2")]
    assert session.authenticated() == []


@pytest.mark.parametrize("frame", [{}, {"token": ""}, {"token": 5}])
def test_auth_without_a_token_is_a_bad_frame(frame):
    assert code_of(send(waiting(), op="auth", **frame)) == "bad_frame"


def test_a_client_without_a_token_is_refused_at_once_unless_the_handshake_had_a_credential():
    session = waiting()
    assert send(session, op="auth", token=None) == [
        Close(CloseCode.UNAUTHENTICATED, "no credential")
    ]
    assert session.phase is Phase.CLOSED
    session = opened()
    assert send(session, op="auth", token=None) == []
    assert session.phase is Phase.OPEN


def test_a_credential_that_is_wrong_or_expired_ends_the_connection_with_its_code():
    assert waiting().rejected(False, "no") == [Close(CloseCode.UNAUTHENTICATED, "no")]
    assert waiting().rejected(True, "old") == [Close(CloseCode.EXPIRED, "old")]
    assert opened().rejected(True, "old") == [Close(CloseCode.EXPIRED, "old")]


def test_the_deadline_for_auth_applies_only_until_auth():
    session = waiting()
    assert session.tick(109.999) == []
    [close] = session.tick(110.0)
    assert close.code is CloseCode.AUTH_TIMEOUT
    assert opened().tick(1e9) == []


def test_the_result_of_an_authentication_after_the_end_has_no_effect():
    session = waiting()
    session.tick(110.0)
    assert session.rejected(False, "no") == []
    assert session.authenticated() == []
    assert session.phase is Phase.CLOSED


@pytest.mark.parametrize("make", [waiting, opened])
def test_the_size_limit_of_a_frame_is_exact(make):
    frame = '{"op":"auth","token":"t"}'
    assert make().receive(frame.ljust(2000)) == [Authenticate("t")]
    for too_big in (frame.ljust(2001), frame.ljust(2001).encode()):
        [close] = make().receive(too_big)
        assert close.code is CloseCode.TOO_BIG


def test_the_size_of_a_frame_is_counted_in_bytes_not_in_characters():
    text = json.dumps({"op": "auth", "token": "é" * 990}, ensure_ascii=False)
    assert len(text) <= 2000 < len(text.encode())
    [close] = opened().receive(text)
    assert close.code is CloseCode.TOO_BIG


def test_the_tenth_bad_frame_ends_the_connection():
    session = opened()
    for _ in range(MAX_BAD_FRAMES - 1):
        assert code_of(session.receive("rubbish")) == "bad_frame"
    [close] = session.receive("rubbish")
    assert close.code is CloseCode.BAD_FRAME
    assert MAX_BAD_FRAMES == 10


def test_an_unknown_op_is_an_error_and_the_connection_stays_open():
    session = opened()
    for _ in range(50):
        assert code_of(send(session, op="dance" * 100)) == "unknown_op"
    assert session.phase is Phase.OPEN


def test_a_subscription_names_cursors_and_history():
    session = opened()
    asked = {"job:1": None, "user:7": "e.5.0000000a", "job:2": "rubbish"}
    assert send(session, op="subscribe", topics=asked, history=7) == [
        Subscribe(
            {"job:1": None, "user:7": Cursor("e", 5, 10), "job:2": Cursor("", 0, 0)}, history=7
        )
    ]
    assert session.topics == set(asked)


@pytest.mark.parametrize("history", [0, 1, MAX_HISTORY])
def test_history_may_be_up_to_a_thousand(history):
    [action] = send(opened(), op="subscribe", topics={"job:1": None}, history=history)
    assert action.history == history
    assert MAX_HISTORY == 1000


@pytest.mark.parametrize("history", [-1, MAX_HISTORY + 1, 1.0, True, "5", None, [1]])
def test_any_other_history_is_a_bad_frame(history):
    session = opened()
    actions = send(session, op="subscribe", topics={"job:1": None}, history=history)
    assert code_of(actions) == "bad_frame"
    assert session.topics == set()


@pytest.mark.parametrize("topics", [None, {}, [], ["job:1"], "job:1", 5, {"job:1": 5}])
def test_topics_that_are_not_an_object_of_cursors_are_a_bad_frame(topics):
    assert code_of(send(opened(), op="subscribe", topics=topics)) == "bad_frame"
    assert code_of(send(opened(), op="subscribe")) == "bad_frame"


def test_one_wrong_topic_refuses_the_whole_subscription():
    session = opened()
    topics = {"job:1": None, "../x": None}
    assert code_of(send(session, op="subscribe", topics=topics)) == "bad_topic"
    assert session.topics == set()


def test_more_topics_than_allowed_are_refused_as_a_whole():
    session = opened()
    send(session, op="subscribe", topics={"job:1": None, "job:2": None})
    more = {"job:3": None, "job:4": None}
    assert code_of(send(session, op="subscribe", topics=more)) == "too_many_topics"
    assert session.topics == {"job:1", "job:2"}
    # A topic that is open does not count twice.
    again = {"job:1": None, "job:2": None, "job:3": None}
    assert isinstance(send(session, op="subscribe", topics=again)[0], Subscribe)


def test_unsubscribed_topics_do_not_count_and_unknown_ones_are_ignored():
    session = opened()
    send(session, op="subscribe", topics={"job:1": None, "job:2": None, "job:3": None})
    actions = send(session, op="unsubscribe", topics=["job:1", "job:9", 5, None, ["job:2"]])
    assert actions == [Unsubscribe(["job:1"])]
    assert send(session, op="unsubscribe", topics=["job:1"]) == []
    assert isinstance(send(session, op="subscribe", topics={"job:4": None})[0], Subscribe)


@pytest.mark.parametrize("topics", [None, {"job:1": None}, "job:1", 5])
def test_unsubscribe_without_a_list_is_a_bad_frame(topics):
    assert code_of(send(opened(), op="unsubscribe", topics=topics)) == "bad_frame"


def test_close_codes_are_those_of_the_protocol():
    assert {code.name: code.value for code in CloseCode} == {
        "FINISHED": 1000,
        "GOING_AWAY": 1001,
        "POLICY": 1008,
        "TOO_BIG": 1009,
        "SERVER_ERROR": 1011,
        "DRAIN": 1012,
        "BAD_FRAME": 4400,
        "UNAUTHENTICATED": 4401,
        "EXPIRED": 4402,
        "FORBIDDEN": 4403,
        "AUTH_TIMEOUT": 4408,
        "EVICTED": 4413,
        "FLOOD": 4420,
        "TOO_MANY_CONNECTIONS": 4429,
    }


@given(st.text(max_size=200))
@example("ä" * 62)
@example("x" + "ä" * 61)
@example("x" * 120 + "👩")
@example("\ud800")
def test_a_close_reason_is_the_longest_beginning_that_a_close_frame_can_have(text: str) -> None:
    reason = close_reason(text)
    whole = text.encode(errors="replace").decode()
    assert whole.startswith(reason)
    assert len(reason.encode()) <= 123
    # One more character would not fit.
    assert reason == whole or len(whole[: len(reason) + 1].encode()) > 123
