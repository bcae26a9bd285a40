import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { plainId } from "../../semantik_realtime/web/static/protocol.js";
import { cursorAt, event, live, MemoryStorage, Page, pass, replay, settled, snapshot, Wire } from "./wire.js";

const JOB = "job:42";
const DONE = { status: "completed", attempt: 1 };
const RUNNING = { status: "running", attempt: 1 };
const DENIED = { op: "denied", topic: JOB, code: "forbidden", message: "no" };

let wires;

beforeEach(() => {
  wires = [];
  mock.timers.enable({ apis: ["setTimeout"] });
  mock.method(Math, "random", () => 0);
  mock.method(console, "warn", () => {});
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

/** Watch a topic, and record the views and the ends. */
function record(wire, topic = JOB) {
  const log = { views: [], ends: [] };
  log.sub = wire.rt.watch(topic, {
    onChange: (view) => log.views.push(view),
    onDenied: ({ code, message }) => log.ends.push([code, message]),
    onGone: () => log.ends.push("gone"),
  });
  return log;
}

const end = (offset, key = "42", state = DONE) => event(offset, key, { state, terminal: true });

/** Return a client that has watched a job to its end and rests. */
async function rested(options) {
  const wire = open(options);
  const log = record(wire);
  const socket = await wire.welcome();
  socket.push(snapshot(JOB, 1, { 42: RUNNING }), live(JOB, 1, end(2)));
  await pass(5);
  assert.equal(wire.rt.connection, "idle");
  return { wire, log };
}

test("five seconds after the end of everything it watches, a client gives its connection back", async () => {
  const wire = open();
  const [mine, other] = [record(wire), record(wire, "job:43")];
  const socket = await wire.welcome();
  socket.push(snapshot(JOB, 1, { 42: RUNNING }), snapshot("job:43", 1, { 43: RUNNING }));
  socket.push(live(JOB, 1, end(2)));
  await pass(40);
  assert.equal(wire.rt.connection, "live");
  socket.push(live("job:43", 1, end(2, "43", { status: "failed" })));
  await pass(4.9);
  socket.push({ op: "tops", topics: { [JOB]: { offset: 2, cursor: cursorAt(2) } } });
  assert.equal(socket.isClosed, false);
  await pass(0.1);
  assert.equal(socket.isClosed, true);
  assert.deepEqual(wire.states.at(-1), ["idle", {}]);
  // An end is final: nothing is outdated because the client has left.
  for (const { views } of [mine, other]) assert.equal(views.at(-1).provisional, false);
  assert.equal(wire.sockets.length, 1);
});

test("a job that had ended before it was read costs a connection of one second", async () => {
  const wire = open();
  record(wire);
  const socket = await wire.welcome();
  await pass(30);
  socket.push(snapshot(JOB, 2, { 42: DONE }));
  await pass(0.9);
  assert.equal(wire.rt.connection, "live");
  await pass(0.1);
  assert.equal(wire.rt.connection, "idle");
});

test("a client that watches nothing gives its connection back, and connects when it watches", async () => {
  const wire = open();
  const first = await wire.welcome();
  await pass(5);
  assert.deepEqual([first.isClosed, wire.rt.connection], [true, "idle"]);
  await pass(3600);
  assert.equal(wire.sockets.length, 1);
  const { sub } = record(wire);
  const second = await wire.welcome();
  assert.deepEqual(Object.keys(second.ops("subscribe")[0].topics), [JOB]);
  await pass(40);
  assert.equal(wire.rt.connection, "live");
  sub.close();
  await pass(5);
  assert.equal(wire.rt.connection, "idle");
});

test("what may still change keeps the connection", async () => {
  const cases = {
    "a feed, whatever its jobs are": ["user:42", { 42: DONE }],
    "a topic of the application": ["collection:42", { 42: DONE }],
    "a job that is retried": [JOB, { 42: { status: "retrying" } }],
    "a job of which nothing is known": [JOB, {}],
    "a job with a child that goes on": [JOB, { 42: DONE, "42-1": { status: "queued" } }],
    "another job's end": [JOB, { 43: DONE }],
  };
  for (const [name, [topic, states]] of Object.entries(cases)) {
    const wire = open();
    record(wire, topic);
    const socket = await wire.welcome();
    socket.push(snapshot(topic, 1, states));
    await pass(40);
    assert.equal(wire.rt.connection, "live", name);
  }
  const wire = open();
  record(wire);
  const socket = await wire.welcome();
  const away = [{ op: "degraded", since: "2026-11-23T08:00:00.000Z" }];
  const states = { 42: DONE };
  socket.push(snapshot(JOB, 1, { 42: RUNNING }), ...away);
  socket.push({ op: "provisional", topic: JOB, epoch: "m:1", source: "recall", states });
  await pass(40);
  assert.equal(wire.rt.connection, "degraded");
  socket.push({ op: "restored" }, live(JOB, 1, end(2)));
  await pass(5);
  assert.equal(wire.rt.connection, "idle");
});

test("children of an application's own kind do not keep the connection", async () => {
  const wire = open();
  record(wire);
  const socket = await wire.welcome();
  socket.push(snapshot(JOB, 1, { 42: DONE, "page 1": { status: "indexed" }, "page 2": {}, odd: null }));
  await pass(1);
  assert.equal(wire.rt.connection, "idle");
});

test("the host's record of an old job is read once", async () => {
  const wire = open();
  record(wire);
  const socket = await wire.welcome();
  socket.push(snapshot(JOB, 0, { 42: DONE }, { cursor: null, reason: "recalled" }));
  await pass(1);
  assert.equal(wire.rt.connection, "idle");
});

test("a new attempt within the five seconds keeps the connection", async () => {
  const wire = open();
  const log = record(wire);
  const socket = await wire.welcome();
  socket.push(snapshot(JOB, 1, { 42: RUNNING }), live(JOB, 1, end(2)));
  await pass(4);
  socket.push(live(JOB, 2, event(3, "42", { state: { status: "running", attempt: 2 } })));
  await pass(30);
  assert.equal(wire.rt.connection, "live");
  assert.equal(log.views.at(-1).states.get("42").attempt, 2);
  socket.push(live(JOB, 3, end(4)));
  await pass(5);
  assert.equal(wire.rt.connection, "idle");
});

test("a visible page reads again after growing pauses, by its cursor, and is never outdated", async () => {
  const { wire, log } = await rested();
  const before = log.views.length;
  for (const minutes of [1, 2, 4, 8, 15, 15]) {
    const sockets = wire.sockets.length;
    await pass(60 * minutes - 0.1);
    assert.equal(wire.sockets.length, sockets, `within ${minutes} min`);
    await pass(0.1);
    const socket = await wire.welcome();
    assert.equal(wire.sockets.length, sockets + 1, `after ${minutes} min`);
    assert.deepEqual(socket.ops("subscribe")[0].topics, { [JOB]: cursorAt(2) });
    await pass(2);
    assert.equal(wire.rt.connection, "live");
    socket.push(replay(JOB, 2, []));
    await pass(1);
    assert.equal(wire.rt.connection, "idle");
  }
  assert.ok(log.views.slice(before).every(({ provisional }) => !provisional));
  assert.deepEqual(log.ends, []);
});

test("a new attempt that began meanwhile is shown, and followed to its end", async () => {
  const { wire, log } = await rested();
  await pass(60);
  const socket = await wire.welcome();
  const state = { status: "running", attempt: 2 };
  socket.push(replay(JOB, 2, [event(3, "42", { state })]));
  await pass(30);
  assert.equal(wire.rt.connection, "live");
  assert.deepEqual(log.views.at(-1).states.get("42"), state);
  socket.push(live(JOB, 3, end(4)));
  await pass(5);
  assert.equal(wire.rt.connection, "idle");
});

test("a hidden page reads when it is shown, or its window is focused, and not before", async () => {
  const page = new Page();
  try {
    for (const wakeUp of [() => page.turn(false), () => page.emit("focus")]) {
      const { wire } = await rested();
      page.turn(true);
      await pass(3600);
      assert.equal(wire.sockets.length, 1);
      globalThis.document.hidden = false;
      wakeUp();
      wakeUp();
      await settled();
      assert.equal(wire.sockets.length, 2);
      assert.equal(wire.rt.connection, "idle");
      wire.rt.close();
    }
    assert.equal(page.listeners, 0);
  } finally {
    page.remove();
  }
});

test("a page that watches the job once more, after a retry by hand, connects at once", async () => {
  const { wire } = await rested();
  const log = record(wire);
  const socket = await wire.welcome();
  assert.equal(log.views.at(-1).provisional, false);
  assert.deepEqual(socket.ops("subscribe")[0].topics, { [JOB]: cursorAt(2) });
});

test("the end of a job whose log has expired stays shown, as provisional", async () => {
  const answers = [DENIED, snapshot(JOB, 0, {}, { cursor: null, reason: "epoch" })];
  for (const answer of answers) {
    const { wire, log } = await rested();
    await pass(60);
    let socket = await wire.welcome();
    socket.push(answer);
    await pass(1);
    assert.equal(wire.rt.connection, "idle");
    assert.deepEqual(log.ends, []);
    assert.deepEqual(log.views.at(-1).states.get("42"), DONE);
    assert.equal(log.views.at(-1).provisional, true);
    // A log that begins anew is read from its first event.
    await pass(120);
    socket = await wire.welcome();
    socket.push(snapshot(JOB, 0, {}, { cursor: null }), live(JOB, 0, event(1)));
    await pass(1);
    assert.equal(log.views.at(-1).states.get("42").status, "running");
    wire.rt.close();
  }
});

test("a deletion is reported to a client that reads again", async () => {
  const { wire, log } = await rested();
  await pass(60);
  (await wire.welcome()).push({ op: "gone", topic: JOB });
  assert.deepEqual(log.ends, ["gone"]);
});

test("after a reload the end of another user's job is denied as ever", async () => {
  const storage = new MemoryStorage();
  const { wire } = await rested({ storage });
  wire.rt.close();
  const next = open({ storage });
  const log = record(next);
  (await next.welcome()).push(DENIED);
  await pass(1);
  assert.deepEqual([log.ends, log.views], [[["forbidden", "no"]], []]);
});

test("a client that rests and cannot connect says so, and goes on trying", async () => {
  const { wire } = await rested();
  await pass(60);
  wire.socket.end();
  assert.equal(wire.rt.connection, "reconnecting");
  const socket = await wire.back();
  socket.push(replay(JOB, 2, []));
  await pass(1);
  assert.equal(wire.rt.connection, "idle");
});

test("a client that is closed while it rests stays closed", async () => {
  const { wire } = await rested();
  wire.rt.close();
  await pass(3600);
  assert.deepEqual([wire.sockets.length, wire.rt.connection], [1, "closed"]);
});

test("a refused credential is reported for each topic, also for one that is watched later", async () => {
  const wire = open();
  const [first, second] = [record(wire), record(wire, "user:7")];
  await settled();
  wire.socket.end(4401, "the token has no exp");
  const refused = [["unauthenticated", "the token has no exp"]];
  assert.deepEqual([first.ends, second.ends], [refused, refused]);
  const late = record(wire, "job:43");
  const closed = record(wire, "job:44");
  closed.sub.close();
  assert.deepEqual(late.ends, []);
  await settled();
  assert.deepEqual([late.ends, closed.ends], [refused, []]);
  for (const [code, name] of [[4403, "forbidden"], [4408, "unauthenticated"], [4400, "bad_frame"], [1009, "too_big"]]) {
    const other = open();
    const log = record(other);
    await other.welcome();
    other.socket.end(code);
    assert.deepEqual(log.ends, [[name, `the server refuses the connection (${code})`]]);
  }
});

test("the plain id of a topic is the application's", () => {
  const ids = {
    "job:42": "42", "job:a~2Fb~20c": "a/b c", "user:Zo~C3~AB": "Zoë", "job:_~2Ex": ".x",
    "job:a~b": "a~b", "job:a~41": "a~41", "job:a~FF": "a~FF", "job:_x": "_x", "job:a~7E2Fb": "a~2Fb",
  };
  for (const [topic, id] of Object.entries(ids)) assert.equal(plainId(topic), id, topic);
});
