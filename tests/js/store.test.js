import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { MAX_BYTES, Store } from "../../semantik_realtime/web/static/store.js";
import {
  cursorAt,
  event,
  live,
  MemoryStorage,
  Page,
  pass,
  replay,
  settled,
  snapshot,
  Wire,
} from "./wire.js";

const JOB = "job:42";
const KEY = `semantik-realtime:ws://host/ws:${JOB}`;

beforeEach(() => mock.timers.enable({ apis: ["setTimeout"] }));
afterEach(() => mock.timers.reset());

/** Load a page that watches the job; return when the server has sent welcome. */
async function load(storage) {
  const wire = new Wire({ storage });
  const log = { wire, views: [], events: [] };
  wire.rt.watch(JOB, {
    history: 10,
    onChange: (view) => log.views.push(view),
    onEvent: ({ offset }, { replayed }) => log.events.push([offset, replayed]),
  });
  log.socket = await wire.welcome();
  log.cursor = log.socket.sent[0].topics[JOB];
  return log;
}

/** Load a page, receive these frames, and close it. */
async function visit(storage, ...frames) {
  const { wire, socket } = await load(storage);
  socket.push(...frames);
  await pass(1);
  wire.rt.close();
}

const known = (offset, states = {}) => ({
  offset,
  cursor: cursorAt(offset),
  states: new Map(Object.entries(states)),
});

test("after a reload a replay folds onto the saved states", async () => {
  const storage = new MemoryStorage();
  const [a, b] = [{ status: "running" }, { status: "failed" }];
  await visit(storage, snapshot(JOB, 1, { a, b }), live(JOB, 1, event(2, "c")));

  const { wire, socket, cursor, views, events } = await load(storage);
  assert.equal(cursor, cursorAt(2));
  socket.push(replay(JOB, 2, [event(3, "a"), event(4, "b", { state: null })]));
  await pass(1);
  wire.rt.close();
  assert.deepEqual(events, [[3, false], [4, false]]);
  assert.deepEqual(Object.fromEntries(views.at(-1).states), {
    a: event(3).state,
    c: event(2).state,
  });
});

test("saved states are not shown before the server has allowed the topic", async () => {
  const storage = new MemoryStorage();
  await visit(storage, snapshot(JOB, 1, { a: {} }));
  const { wire, socket, views } = await load(storage);
  const top = { offset: 9, cursor: cursorAt(9) };
  socket.push({ op: "tops", topics: { [JOB]: top } }, replay(JOB, 8, [event(9)]));
  await pass(1);
  assert.deepEqual(views, []);
  socket.push({ op: "denied", topic: JOB, code: "forbidden", message: "" });
  await pass(1);
  wire.rt.close();
  assert.deepEqual(views, []);
  assert.deepEqual(storage.keys(), []);
});

test("a replay without events shows the saved states", async () => {
  const storage = new MemoryStorage();
  await visit(storage, snapshot(JOB, 1, { a: { status: "running" } }));
  const { wire, socket, views } = await load(storage);
  socket.push(replay(JOB, 1, []));
  await pass(1);
  wire.rt.close();
  assert.deepEqual([...views.at(-1).states], [["a", { status: "running" }]]);
});

test("after a reload the history of a snapshot is shown again", async () => {
  const storage = new MemoryStorage();
  const history = snapshot(JOB, 2, {}, { events: [event(1), event(2)] });
  await visit(storage, history);
  const { wire, socket, events } = await load(storage);
  socket.push({ ...history, reason: "trimmed" });
  socket.push({ ...history, reason: "trimmed" });
  wire.rt.close();
  assert.deepEqual(events, [[1, true], [2, true]]);
});

test("a deleted topic is removed from the storage", async () => {
  const storage = new MemoryStorage();
  await visit(storage, snapshot(JOB, 1));
  assert.deepEqual(storage.keys(), [KEY]);
  await visit(storage, replay(JOB, 1, [event(2)]), { op: "gone", topic: JOB });
  assert.deepEqual(storage.keys(), []);
});

test("the log's states are saved, not the record shown over them", async () => {
  const storage = new MemoryStorage();
  const [logged, recorded] = [{ status: "running" }, { status: "lost" }];
  const states = { a: recorded };
  const provisional = { op: "provisional", topic: JOB, epoch: "m:1", source: "recall", states };
  await visit(storage, snapshot(JOB, 1, { a: logged }), provisional);
  const { wire, socket, views } = await load(storage);
  socket.push(replay(JOB, 1, []));
  await pass(1);
  wire.rt.close();
  assert.deepEqual([...views.at(-1).states], [["a", logged]]);
});

test("a recalled view does not replace the cursor saved before it", async () => {
  const storage = new MemoryStorage();
  const recalled = snapshot(JOB, 0, { a: {} }, { cursor: null, reason: "recalled" });
  await visit(storage, snapshot(JOB, 7), recalled);
  const { wire, cursor } = await load(storage);
  wire.rt.close();
  assert.equal(cursor, cursorAt(7));
});

test("with corrupt saved content the topic starts from a snapshot", async () => {
  const rows = [
    "",
    "{",
    "null",
    "7",
    "[]",
    "{}",
    '{"cursor":"e1.2.0","offset":2}',
    '{"cursor":"e1.2.0","offset":2,"states":{"a":{}}}',
    '{"cursor":"e1.2.0","offset":2,"states":[["a"]]}',
    '{"cursor":"e1.2.0","offset":2,"states":[["a",null]]}',
    '{"cursor":"e1.2.0","offset":2,"states":[null]}',
    '{"cursor":"e1.2.0","offset":"2","states":[]}',
    '{"cursor":7,"offset":2,"states":[]}',
  ];
  for (const row of rows) {
    const storage = new MemoryStorage();
    storage.setItem(KEY, row);
    const { wire, cursor, socket, events } = await load(storage);
    assert.equal(cursor, null, row);
    socket.push(snapshot(JOB, 1), live(JOB, 1, event(2)));
    wire.rt.close();
    assert.deepEqual(events, [[2, false]]);
  }
});

test("with a storage that always throws the client works without saving", async () => {
  const refuse = () => {
    throw new Error("SecurityError");
  };
  const storage = { getItem: refuse, setItem: refuse, removeItem: refuse, key: refuse };
  Object.defineProperty(storage, "length", { get: refuse });
  for (const each of [storage, new MemoryStorage(0), null]) {
    const { wire, socket, events } = await load(each);
    socket.push(snapshot(JOB, 1), live(JOB, 1, event(2)));
    await pass(1);
    wire.rt.close();
    assert.deepEqual(events, [[2, false]]);
  }
});

test("views are written after a second, and at once when the page is hidden or unloaded", async () => {
  const page = new Page();
  try {
    const storage = new MemoryStorage();
    const writes = mock.method(storage, "setItem");
    const { wire, socket } = await load(storage);
    socket.push(snapshot(JOB, 0));
    for (let n = 1; n <= 20; n++) socket.push(live(JOB, n - 1, event(n)));
    assert.equal(writes.mock.callCount(), 0);
    await pass(1);
    assert.equal(writes.mock.callCount(), 1);
    socket.push(live(JOB, 20, event(21)));
    await pass(1);
    assert.equal(writes.mock.callCount(), 2);
    socket.push(live(JOB, 21, event(22)));
    page.emit("pagehide");
    assert.equal(writes.mock.callCount(), 3);
    socket.push(live(JOB, 22, event(23)));
    page.turn(true);
    assert.equal(writes.mock.callCount(), 4);
    assert.equal(JSON.parse(storage.getItem(KEY)).offset, 23);
    await settled();
    wire.rt.close();
    assert.equal(writes.mock.callCount(), 4);
  } finally {
    page.remove();
  }
});

test("the saved bytes stay below the limit, and the least recently written topics are removed", () => {
  const storage = new MemoryStorage();
  storage.setItem("other", "x".repeat(MAX_BYTES));
  const bytes = () =>
    storage
      .keys()
      .filter((key) => key !== "other")
      .reduce((sum, key) => sum + 2 * (key.length + storage.getItem(key).length), 0);
  const large = { text: "x".repeat(MAX_BYTES / 2 / 10) };
  for (let n = 0; n < 30; n++) {
    // A new store each time: the limit holds over reloads.
    const store = new Store(storage, "p:");
    store.save(`job:${n}`, known(n, { a: large }));
    if (n > 15) store.save("job:15", known(n, { a: large }));
    store.flush();
    assert.ok(bytes() <= MAX_BYTES);
  }
  const topics = storage.keys().filter((key) => key !== "other");
  assert.deepEqual(new Set(topics.slice(-2)), new Set(["p:job:29", "p:job:15"]));
  assert.ok(topics.length >= 8);
  assert.equal(storage.getItem("other").length, MAX_BYTES);
});

test("items of other programs are not counted", () => {
  const storage = new MemoryStorage();
  const first = new Store(storage, "p:");
  first.save("job:1", known(1));
  first.flush();
  storage.setItem("other", "x".repeat(MAX_BYTES));
  const second = new Store(storage, "p:");
  second.save("job:2", known(1));
  second.flush();
  assert.deepEqual(storage.keys(), ["p:job:1", "other", "p:job:2"]);
});

test("the storage of the tab is used unless another or none is given", async () => {
  globalThis.sessionStorage = new MemoryStorage();
  try {
    await visit(null, snapshot(JOB, 1));
    assert.deepEqual(globalThis.sessionStorage.keys(), []);
    await visit(undefined, snapshot(JOB, 1));
    assert.deepEqual(globalThis.sessionStorage.keys(), [KEY]);
  } finally {
    delete globalThis.sessionStorage;
  }
});

test("a page whose browser forbids the storage works without it", async () => {
  const get = () => {
    throw new Error("SecurityError");
  };
  Object.defineProperty(globalThis, "sessionStorage", { get, configurable: true });
  try {
    await visit(undefined, snapshot(JOB, 1));
  } finally {
    delete globalThis.sessionStorage;
  }
});

test("a topic too large to save leaves nothing in the storage", () => {
  const storage = new MemoryStorage();
  const store = new Store(storage, "p:");
  store.save("job:1", known(1));
  store.flush();
  store.save("job:1", known(2, { a: { text: "x".repeat(MAX_BYTES) } }));
  store.flush();
  assert.deepEqual(storage.keys(), []);
});
