import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { cursorAt, event, live, Page, pass, replay, settled, snapshot, Wire } from "./wire.js";

const JOB = "job:42";

let wires;

beforeEach(() => {
  wires = [];
  mock.timers.enable({ apis: ["setTimeout"] });
});

afterEach(() => {
  for (const { rt } of wires) rt.close();
  mock.timers.reset();
  mock.restoreAll();
});

function open(options) {
  wires.push(new Wire(options));
  return wires.at(-1);
}

/** Watch, and record what every callback gets. */
function record(wire, topic = JOB, options = {}) {
  const log = { views: [], events: [], ends: [] };
  log.sub = wire.rt.watch(topic, {
    onChange: (view) => log.views.push(view),
    onEvent: ({ offset }, { replayed }) => log.events.push([offset, replayed]),
    onDenied: (info) => log.ends.push(info),
    onGone: () => log.ends.push("gone"),
    ...options,
  });
  return log;
}

test("topics watched together are subscribed in one frame", async () => {
  const wire = open();
  const socket = await wire.welcome();
  for (const topic of [JOB, "user:7", "job:43"]) wire.rt.watch(topic, { history: 5 });
  await settled();
  const topics = { [JOB]: null, "user:7": null, "job:43": null };
  assert.deepEqual(socket.sent, [{ op: "subscribe", topics, history: 5 }]);
});

test("topics with different histories are subscribed apart", async () => {
  const wire = open();
  const socket = await wire.welcome();
  wire.rt.watch(JOB, { history: 5 });
  wire.rt.watch("user:7");
  await settled();
  assert.deepEqual(socket.sent, [
    { op: "subscribe", topics: { [JOB]: null }, history: 5 },
    { op: "subscribe", topics: { "user:7": null }, history: 0 },
  ]);
});

test("several watchers may share one options object", async () => {
  const wire = open();
  const events = [];
  const options = { onEvent: ({ offset }) => events.push(offset) };
  const first = wire.rt.watch(JOB, options);
  wire.rt.watch(JOB, options);
  const socket = await wire.welcome();
  socket.push(snapshot(JOB, 0), live(JOB, 0, event(1)));
  first.close();
  socket.push(live(JOB, 1, event(2)));
  assert.deepEqual(events, [1, 1, 2]);
});

test("topics watched before the welcome are subscribed after it", async () => {
  const wire = open();
  wire.rt.watch(JOB);
  await settled();
  wire.socket.onopen({});
  await settled();
  assert.deepEqual(wire.socket.sent, []);
  await wire.welcome();
  assert.equal(wire.socket.ops("subscribe").length, 1);
});

test("many topics are subscribed in frames below 64 KiB", async () => {
  const wire = open();
  const socket = await wire.welcome();
  const count = 1000;
  for (let n = 0; n < count; n++) wire.rt.watch(`job:${String(n).padStart(200, "x")}`);
  await settled();
  const subscribed = socket.ops("subscribe").flatMap(({ topics }) => Object.keys(topics));
  assert.equal(new Set(subscribed).size, count);
  assert.equal(subscribed.length, count);
  for (const frame of socket.sent) assert.ok(JSON.stringify(frame).length < 65536);
});

/** Return the topics of the sent frames with this op, in order. */
function topicsOf(socket, op) {
  const named = ({ topics }) => (Array.isArray(topics) ? topics : Object.keys(topics));
  return socket.ops(op).flatMap(named);
}

const JOBS = ["job:1", "job:2", "job:3", "job:4"];
const noPlace = (topic, limit) => {
  return { topic, code: "too_many_topics", message: `at most ${limit} topics` };
};

test("beyond the server's limit onDenied is called, and the topics watched first are subscribed", async () => {
  const wire = open();
  const logs = JOBS.map((topic) => record(wire, topic));
  const socket = await wire.welcome(20, { topics: 2 });
  assert.deepEqual(topicsOf(socket, "subscribe"), ["job:1", "job:2"]);
  assert.deepEqual(logs.map(({ ends }) => ends), [
    [], [], [noPlace("job:3", 2)], [noPlace("job:4", 2)],
  ]);
  const late = record(wire, "job:3");
  assert.deepEqual(late.ends, []);
  await settled();
  assert.deepEqual(late.ends, [noPlace("job:3", 2)]);
  const one = record(wire, "job:5");
  await settled();
  assert.deepEqual(one.ends, [noPlace("job:5", 2)]);
  assert.equal(logs[2].ends.length, 1);
});

test("a topic over the limit is subscribed when another one is closed, denied or gone", async () => {
  const wire = open();
  const logs = [...JOBS, "job:5"].map((topic) => record(wire, topic));
  const socket = await wire.welcome(20, { topics: 2 });
  // Closing a topic that was never subscribed sends nothing and makes no room for another one.
  logs[3].sub.close();
  await settled();
  assert.deepEqual(topicsOf(socket, "subscribe"), ["job:1", "job:2"]);
  logs[0].sub.close();
  await settled();
  assert.deepEqual(socket.sent.slice(1).map(({ op, topics }) => [op, topics]), [
    ["unsubscribe", ["job:1"]],
    ["subscribe", { "job:3": null }],
  ]);
  socket.push(snapshot("job:3", 1), live("job:3", 1, event(2)));
  await pass(1);
  assert.deepEqual(logs[2].events, [[2, false]]);
  assert.equal(logs[2].views.at(-1).provisional, false);

  socket.push({ op: "gone", topic: "job:2" });
  await settled();
  assert.deepEqual(topicsOf(socket, "subscribe"), ["job:1", "job:2", "job:3", "job:5"]);
  assert.deepEqual(logs[2].ends, [noPlace("job:3", 2)]);
});

test("after a reconnect the client subscribes as many topics as the server now allows", async () => {
  const wire = open();
  const logs = JOBS.map((topic) => record(wire, topic));
  let socket = await wire.welcome(20, { topics: 3 });
  for (const topic of JOBS.slice(0, 3)) socket.push(snapshot(topic, 1));
  socket = await wire.reconnect(1006, { topics: 3 });
  assert.deepEqual(topicsOf(socket, "subscribe"), JOBS.slice(0, 3));
  assert.deepEqual(logs.map(({ ends }) => ends.length), [0, 0, 0, 1]);

  socket = await wire.reconnect(1006, { topics: 1 });
  assert.deepEqual(topicsOf(socket, "subscribe"), ["job:1"]);
  assert.deepEqual(logs.map(({ ends }) => ends.length), [0, 1, 1, 1]);
  await pass(1);
  assert.equal(logs[1].views.at(-1).provisional, true);
  logs[1].sub.close();
  assert.deepEqual(socket.ops("unsubscribe"), []);

  socket = await wire.reconnect(1006, { topics: 4 });
  assert.deepEqual(socket.ops("subscribe")[0].topics, {
    "job:1": cursorAt(1), "job:3": cursorAt(1), "job:4": null,
  });
});

test("several watchers of a topic share one subscription, and the last close ends it", async () => {
  const wire = open();
  const first = record(wire, JOB, { history: 2 });
  const second = record(wire, JOB, { history: 7 });
  wire.rt.watch(JOB, { history: 3 }).close();
  const socket = await wire.welcome();
  const topics = { [JOB]: null };
  assert.deepEqual(socket.ops("subscribe"), [{ op: "subscribe", topics, history: 7 }]);
  socket.push(snapshot(JOB, 1, {}, { events: [event(1)] }), live(JOB, 1, event(2)));
  const shown = [[1, true], [2, false]];
  assert.deepEqual([first.events, second.events], [shown, shown]);

  first.sub.close();
  first.sub.close();
  assert.deepEqual(socket.ops("unsubscribe"), []);
  socket.push(live(JOB, 2, event(3)));
  assert.deepEqual([first.events.length, second.events.length], [2, 3]);
  second.sub.close();
  assert.deepEqual(socket.ops("unsubscribe"), [{ op: "unsubscribe", topics: [JOB] }]);
});

test("a watcher of a topic already subscribed gets the view without a new frame", async () => {
  const wire = open();
  record(wire);
  const socket = await wire.welcome();
  socket.push(snapshot(JOB, 3, { 42: { status: "running" } }));
  const late = record(wire);
  await settled();
  assert.equal(late.views.length, 1);
  assert.deepEqual(late.views[0], {
    topic: JOB,
    states: new Map([["42", { status: "running" }]]),
    offset: 3,
    cursor: cursorAt(3),
    reason: "new",
    overlay: new Map(),
    conflated: 0,
    provisional: false,
  });
  assert.equal(socket.ops("subscribe").length, 1);
});

test("a watcher closed before its first view is never called", async () => {
  const wire = open();
  record(wire);
  const socket = await wire.welcome();
  socket.push(snapshot(JOB, 3));
  const late = record(wire);
  late.sub.close();
  await settled();
  await pass(1);
  assert.deepEqual(late.views, []);
});

test("onChange is called once per animation frame, with the newest view", async () => {
  const page = new Page();
  try {
    const wire = open();
    const log = record(wire);
    const socket = await wire.welcome();
    socket.push(snapshot(JOB, 0));
    for (let n = 1; n <= 50; n++) socket.push(live(JOB, n - 1, event(n)));
    assert.deepEqual(log.views, []);
    assert.equal(page.frames, 1);
    page.animate();
    assert.deepEqual(log.views.map(({ offset }) => offset), [50]);
    page.animate();
    await pass(1);
    assert.equal(log.views.length, 1);
    assert.equal(log.events.length, 50);
  } finally {
    page.remove();
  }
});

test("a page without animation frames gets its views by a timer", async () => {
  const page = new Page();
  try {
    const wire = open();
    const log = record(wire);
    const socket = await wire.welcome();
    socket.push(snapshot(JOB, 1));
    await pass(0.25);
    assert.equal(log.views.length, 1);
    page.turn(true);
    socket.push(live(JOB, 1, event(2)));
    await pass(0.016);
    assert.equal(log.views.length, 2);
    page.animate();
    assert.equal(log.views.length, 2);
  } finally {
    page.remove();
  }
});

test("a reconnect resumes with the cursor and shows each missed event once", async () => {
  const wire = open();
  const log = record(wire, JOB, { history: 10 });
  let socket = await wire.welcome();
  socket.push(snapshot(JOB, 2, {}, { events: [event(1), event(2)] }), live(JOB, 2, event(3)));
  socket = await wire.reconnect();
  const topics = { [JOB]: cursorAt(3) };
  assert.deepEqual(socket.ops("subscribe"), [{ op: "subscribe", topics, history: 10 }]);
  socket.push(live(JOB, 4, event(5)), replay(JOB, 3, [event(4), event(5)]), live(JOB, 5, event(6)));
  const replayed = [[1, true], [2, true]];
  assert.deepEqual(log.events, [...replayed, [3, false], [4, false], [5, false], [6, false]]);
  await settled();
  assert.equal(socket.ops("subscribe").length, 1);
});

test("a gap causes one resubscribe, with the cursor", async () => {
  const wire = open();
  const log = record(wire);
  const socket = await wire.welcome();
  socket.push(snapshot(JOB, 1), live(JOB, 2, event(3)), live(JOB, 3, event(4)));
  await settled();
  const subscribed = socket.ops("subscribe").map(({ topics }) => topics);
  assert.deepEqual(subscribed, [{ [JOB]: null }, { [JOB]: cursorAt(1) }]);
  socket.push(replay(JOB, 1, [event(2), event(3), event(4)]));
  assert.deepEqual(log.events.map(([offset]) => offset), [2, 3, 4]);
});

test("a topic closed during a gap is unsubscribed and not subscribed again", async () => {
  const wire = open();
  const log = record(wire);
  const socket = await wire.welcome();
  socket.push(snapshot(JOB, 1), live(JOB, 2, event(3)));
  log.sub.close();
  await settled();
  assert.deepEqual(socket.sent.map(({ op }) => op), ["subscribe", "unsubscribe"]);
});

/** Return the frames of a server whose backend is away and whose host's record has these states. */
function recordOf(states) {
  const since = "2026-11-23T08:00:00.000Z";
  const provisional = { op: "provisional", topic: JOB, epoch: "m:1", source: "recall", states };
  return [{ op: "degraded", since }, provisional];
}

const running = (current) => ({ status: "running", attempt: 1, progress: { current, total: 9 } });

test("while the backend is away the host's record is shown, and the log is resumed", async () => {
  const wire = open();
  const log = record(wire);
  let socket = await wire.welcome();
  socket.push(snapshot(JOB, 1, { 42: running(2) }), ...recordOf({ 42: running(5) }));
  await pass(0.016);
  let view = log.views.at(-1);
  assert.deepEqual(Object.fromEntries(view.states), { 42: running(5) });
  assert.deepEqual([...view.overlay.keys()], ["42"]);
  assert.deepEqual([view.offset, view.cursor, view.provisional], [1, cursorAt(1), true]);
  assert.deepEqual(log.events, []);

  socket = await wire.reconnect();
  assert.deepEqual(socket.ops("subscribe")[0].topics, { [JOB]: cursorAt(1) });
  socket.push(replay(JOB, 1, [event(2, "42", { state: running(6) })]));
  await pass(0.016);
  view = log.views.at(-1);
  assert.deepEqual(Object.fromEntries(view.states), { 42: running(6) });
  assert.deepEqual([view.overlay.size, view.provisional], [0, false]);
  assert.deepEqual(log.events, [[2, false]]);
});

test("after restored a view stays provisional until the log has caught up", async () => {
  const wire = open();
  const log = record(wire);
  const socket = await wire.welcome();
  const last = async () => {
    await pass(0.016);
    const { states, provisional } = log.views.at(-1);
    return [states.get("42").progress.current, provisional];
  };
  socket.push(snapshot(JOB, 1, { 42: running(2) }), ...recordOf({ 42: running(5) }));
  assert.deepEqual(await last(), [5, true]);
  socket.push(replay(JOB, 1, []), { op: "restored" });
  assert.deepEqual(await last(), [5, true]);
  assert.equal(wire.rt.connection, "live");
  socket.push(live(JOB, 1, event(2, "42", { state: running(3) })));
  assert.deepEqual(await last(), [5, true]);
  socket.push(live(JOB, 2, event(3, "42", { state: running(5) })));
  assert.deepEqual(await last(), [5, false]);
});

test("restored alone shows the log's state again where it is not behind the record", async () => {
  const wire = open();
  const log = record(wire);
  const socket = await wire.welcome();
  const recorded = { ...running(2), message: "from the database" };
  socket.push(snapshot(JOB, 1, { 42: running(2) }), ...recordOf({ 42: recorded }));
  await pass(0.016);
  assert.deepEqual(log.views.at(-1).states.get("42"), recorded);
  socket.push({ op: "restored" });
  await pass(0.016);
  assert.deepEqual(log.views.at(-1).states.get("42"), running(2));
  assert.equal(log.views.at(-1).provisional, false);
});

test("provisional states that arrive before the first sync are shown until the sync", async () => {
  const wire = open();
  const log = record(wire);
  const socket = await wire.welcome();
  const last = async () => {
    await pass(0.016);
    const { states, provisional } = log.views.at(-1);
    return [[...states.keys()], provisional];
  };
  socket.push(...recordOf({ 42: running(5), 43: running(1) }));
  assert.deepEqual(await last(), [["42", "43"], true]);
  socket.push({ op: "restored" });
  assert.deepEqual(await last(), [["42", "43"], true]);
  socket.push(snapshot(JOB, 1, { 42: running(6) }));
  assert.deepEqual(await last(), [["42"], false]);
});

test("the record of one topic is not shown in another", async () => {
  const wire = open();
  const [mine, other] = [record(wire), record(wire, "user:7")];
  const socket = await wire.welcome();
  socket.push(snapshot(JOB, 1), snapshot("user:7", 1), ...recordOf({ 42: running(5) }));
  await pass(0.016);
  assert.equal(mine.views.at(-1).states.size, 1);
  assert.equal(other.views.at(-1).states.size, 0);
});

test("a view is provisional without a connection, a backend, or a log", async () => {
  const wire = open();
  const log = record(wire);
  let socket = await wire.welcome();
  const last = async () => {
    await pass(0.016);
    return log.views.at(-1).provisional;
  };
  socket.push(snapshot(JOB, 1));
  assert.equal(await last(), false);
  socket.push({ op: "degraded", since: "2026-11-23T08:00:00.000Z" });
  assert.equal(await last(), true);
  socket.push({ op: "restored" });
  assert.equal(await last(), false);
  socket.end();
  assert.equal(await last(), true);
  socket = await wire.back();
  assert.equal(await last(), true);
  socket.push(replay(JOB, 1, []));
  assert.equal(await last(), false);
  socket.push(snapshot(JOB, 0, {}, { cursor: null, reason: "recalled" }));
  assert.equal(await last(), true);
  assert.equal(log.views.at(-1).reason, "recalled");
});

test("denied ends the subscription of that topic alone", async () => {
  const wire = open();
  const log = record(wire);
  const other = record(wire, "job:43");
  let socket = await wire.welcome();
  socket.push(snapshot(JOB, 1), snapshot("job:43", 1));
  socket.push({ op: "denied", topic: JOB, code: "forbidden", message: "no" });
  assert.deepEqual(log.ends, [{ topic: JOB, code: "forbidden", message: "no" }]);
  socket.push(live(JOB, 1, event(2)), live("job:43", 1, event(2)));
  await pass(1);
  assert.deepEqual([log.events.length, log.views.length, other.events.length], [0, 0, 1]);
  assert.equal(wire.rt.connection, "live");
  socket = await wire.reconnect();
  assert.deepEqual(Object.keys(socket.sent[0].topics), ["job:43"]);
  log.sub.close();
  assert.deepEqual(socket.ops("unsubscribe"), []);
});

test("gone ends the subscription, and the topic can be watched again", async () => {
  const wire = open();
  const log = record(wire);
  const socket = await wire.welcome();
  socket.push(snapshot(JOB, 5, { 42: {} }), { op: "gone", topic: JOB });
  assert.deepEqual(log.ends, ["gone"]);
  const again = record(wire);
  log.sub.close();
  await settled();
  assert.deepEqual(socket.sent.map(({ op }) => op), ["subscribe", "subscribe"]);
  socket.push(snapshot(JOB, 1, {}, { events: [event(1)] }));
  await pass(1);
  assert.deepEqual([again.events, again.views.length, log.views.length], [[[1, true]], 1, 0]);
});

test("a callback that throws does not end the stream", async () => {
  const complaints = mock.method(console, "error", () => {});
  const wire = open();
  const fail = () => {
    throw new Error("page");
  };
  wire.rt.onConnection(fail);
  record(wire, JOB, { onEvent: fail, onChange: fail });
  const log = record(wire);
  const socket = await wire.welcome();
  socket.push(snapshot(JOB, 0), live(JOB, 0, event(1), event(2)));
  await pass(1);
  assert.deepEqual([log.events.length, log.views.length], [2, 1]);
  assert.equal(complaints.mock.callCount(), 2 + 2 + 1);
});

test("a watcher that closes itself within an event gets no more", async () => {
  const wire = open();
  const seen = [];
  const sub = wire.rt.watch(JOB, {
    onEvent: ({ offset }) => {
      seen.push(offset);
      sub.close();
    },
  });
  const socket = await wire.welcome();
  socket.push(snapshot(JOB, 0), live(JOB, 0, event(1), event(2)));
  assert.deepEqual(seen, [1]);
});

test("a late watcher that closes itself within its first view is not denied as well", async () => {
  const wire = open();
  const before = [record(wire, "job:1"), record(wire)];
  let socket = await wire.welcome();
  socket.push(snapshot("job:1", 1), snapshot(JOB, 1));
  socket = await wire.reconnect(1006, { topics: 1 });
  assert.deepEqual(before.map(({ ends }) => ends.length), [0, 1]);
  const late = record(wire, JOB, { onChange: () => late.sub.close() });
  await settled();
  assert.deepEqual(late.ends, []);
});

test("a watcher closed by another one gets no more", async () => {
  const wire = open();
  record(wire, JOB, { onEvent: () => other.sub.close(), onChange: () => third.sub.close() });
  const other = record(wire);
  const third = record(wire);
  const socket = await wire.welcome();
  socket.push(snapshot(JOB, 0), live(JOB, 0, event(1)));
  await pass(1);
  assert.deepEqual([other.events, third.events, third.views], [[], [[1, false]], []]);
});

test("no callback runs after close, not even within a batch", async () => {
  const wire = open();
  const log = record(wire, JOB, {
    onEvent: ({ offset }) => {
      log.events.push(offset);
      wire.rt.close();
    },
  });
  const socket = await wire.welcome();
  socket.push(snapshot(JOB, 0), live(JOB, 0, event(1), event(2)));
  await pass(60);
  assert.deepEqual([log.events, log.views], [[1], []]);
  assert.throws(() => wire.rt.watch(JOB), /closed/);
});

test("an error frame is logged on the console and changes nothing", async () => {
  const warnings = mock.method(console, "warn", () => {});
  const wire = open();
  const socket = await wire.welcome();
  socket.push({ op: "error", code: "bad_topic", message: "no" });
  assert.match(warnings.mock.calls[0].arguments[0], /bad_topic/);
  assert.equal(wire.rt.connection, "live");
});

test("watch throws for a name that is not a topic and for a history out of range", () => {
  const wire = open();
  for (const topic of ["", "job:", "JOB:1", "../x", "job:4\n2", "job:42\n", 7]) {
    assert.throws(() => wire.rt.watch(topic), TypeError, String(topic));
  }
  for (const history of [-1, 1001, 1.5, "5", null]) {
    assert.throws(() => wire.rt.watch(JOB, { history }), RangeError, String(history));
  }
});
