/** Connections cut, and batches lost or repeated at random, with a simulated server. */

import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { cursorAt, event, MemoryStorage, pass, settled, snapshot, Wire } from "./wire.js";

const TOPIC = "user:7";
const EVENTS = 5000;
const KEYS = 7;

beforeEach(() => mock.timers.enable({ apis: ["setTimeout"] }));
afterEach(() => {
  mock.timers.reset();
  mock.restoreAll();
});

/** A linear congruential generator: the same numbers in [0, 1) for the same seed. */
function seeded(seed) {
  let state = seed;
  return () => (state = (state * 1664525 + 1013904223) >>> 0) / 2 ** 32;
}

/** A log of one topic, and the server's side of a connection to it. */
class Server {
  states = new Map();
  log = [];
  #waiting = [];
  #sent = null;

  constructor({ retained = Infinity, conflates = false, random }) {
    Object.assign(this, { retained, conflates, random });
  }

  get top() {
    return this.log.length;
  }

  append() {
    const offset = this.top + 1;
    const key = String(Math.floor(this.random() * KEYS));
    const made = event(offset, key, this.random() < 0.1 ? { state: null } : {});
    if (this.random() < 0.1) delete made.state;
    if (made.state) this.states.set(key, made.state);
    if (made.state === null) this.states.delete(key);
    this.log.push(made);
  }

  accept(socket) {
    this.#sent = null;
    this.#waiting = [];
    this.socket = socket;
    socket.onSent = (frame) => {
      if (frame.op === "subscribe") this.#sync(frame.topics[TOPIC], frame.history);
    };
    socket.welcome();
  }

  /** Queue one batch of all events since the last batch. */
  pump() {
    if (this.#sent === null || this.#sent === this.top) return;
    this.#waiting.push({ op: "events", topics: { [TOPIC]: this.#batch(this.#sent) } });
  }

  tops() {
    if (this.#sent === null) return;
    const top = { offset: this.#sent, cursor: cursorAt(this.#sent) };
    this.#waiting.push({ op: "tops", topics: { [TOPIC]: top } });
  }

  deliver(count) {
    this.socket.push(...this.#waiting.splice(0, count));
  }

  /** Lose one of the queued batches, or queue it a second time. */
  spoil() {
    const at = this.#waiting.findIndex(({ op }) => op === "events");
    if (at < 0) return;
    if (this.random() < 0.5) this.#waiting.splice(at, 1);
    else this.#waiting.push(this.#waiting[at]);
  }

  #sync(cursor, history) {
    const after = cursor === null ? null : Number(cursor.split(".")[1]);
    const op = { op: "sync", topic: TOPIC };
    if (after !== null && this.top - after <= this.retained) {
      this.#waiting.push({ ...op, mode: "replay", ...this.#batch(after) });
      return;
    }
    const events = this.log.slice(-Math.min(history, this.retained));
    const reason = cursor === null ? "new" : "trimmed";
    const states = Object.fromEntries(this.states);
    this.#waiting.push(snapshot(TOPIC, this.top, states, { reason, events }));
    this.#sent = this.top;
  }

  #batch(prev) {
    let events = this.log.slice(prev);
    if (this.conflates) events = events.filter((each) => !this.#isSuperseded(each));
    this.#sent = this.top;
    return { prev, offset: this.top, cursor: cursorAt(this.top), events };
  }

  #isSuperseded({ offset, key, state }) {
    if (state === undefined) return false;
    return this.log.slice(offset).some((each) => each.key === key && each.state !== undefined);
  }
}

/** Append all events while the stream is disturbed; return what the callbacks of the page got. */
async function run(server, { random, reloads = false, history = 20 }) {
  mock.method(Math, "random", random);
  const storage = reloads ? new MemoryStorage() : null;
  const got = { shown: [], cuts: 0, reloads: 0, view: null };
  let wire;
  const load = async () => {
    wire = new Wire({ storage });
    wire.rt.watch(TOPIC, {
      history,
      onEvent: ({ offset }) => got.shown.push(offset),
      onChange: (view) => (got.view = view),
    });
    await settled();
    server.accept(wire.socket);
    await settled();
  };
  const comeBack = async () => {
    await pass(30);
    server.accept(wire.socket);
    await settled();
  };
  const appendSome = (most) => {
    for (let left = Math.floor(random() * most); left > 0 && server.top < EVENTS; left--) {
      server.append();
    }
  };

  await load();
  server.deliver(1);
  while (server.top < EVENTS) {
    appendSome(10);
    server.pump();
    if (random() < 0.05) server.spoil();
    if (random() < 0.1) server.tops();
    server.deliver(Math.floor(random() * 4));
    await settled();
    if (random() < 0.05) {
      got.cuts++;
      wire.socket.end();
      appendSome(80);
      await comeBack();
    } else if (reloads && random() < 0.03) {
      got.reloads++;
      wire.rt.close();
      appendSome(80);
      await load();
    }
  }
  // The last batch may have been lost: `tops` shows the gap, and the answer closes it.
  for (let round = 0; round < 3; round++) {
    server.pump();
    server.tops();
    server.deliver(Infinity);
    await settled();
  }
  await pass(0.016);
  wire.rt.close();
  return got;
}

const all = Array.from({ length: EVENTS }, (_, index) => index + 1);
const byKey = (states) => Object.fromEntries([...states].sort());

for (const seed of [1, 2, 3, 4, 5]) {
  test(`a stream cut at random shows each event once and in order (seed ${seed})`, async () => {
    const random = seeded(seed);
    const server = new Server({ random });
    const got = await run(server, { random });
    assert.ok(got.cuts > 10);
    assert.deepEqual(got.shown, all);
    assert.deepEqual(byKey(got.view.states), byKey(server.states));
  });

  test(`reloads in between neither lose nor repeat an event (seed ${seed})`, async () => {
    const random = seeded(seed);
    const server = new Server({ random });
    const got = await run(server, { random, reloads: true });
    assert.ok(got.reloads > 5);
    assert.deepEqual(got.shown, all);
    assert.deepEqual(byKey(got.view.states), byKey(server.states));
  });

  test(`a short, conflated log gives the right states and repeats no event (seed ${seed})`, async () => {
    const random = seeded(seed);
    const server = new Server({ random, retained: 30, conflates: true });
    const got = await run(server, { random });
    assert.ok(got.shown.length > 1000 && got.shown.length < EVENTS);
    assert.ok(got.shown.every((offset, index) => index === 0 || offset > got.shown[index - 1]));
    assert.deepEqual(byKey(got.view.states), byKey(server.states));
    assert.equal(got.view.offset, EVENTS);
  });
}
