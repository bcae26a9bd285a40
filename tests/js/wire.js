/** Fakes that a test controls: the server's end of the sockets, the page, and the time. */

import { mock } from "node:test";

import { connect } from "../../semantik_realtime/web/static/realtime.js";

/** Resolves when all queued microtasks have run. */
export const settled = () => new Promise((resolve) => setImmediate(resolve));

/** Let this much time pass. */
export async function pass(seconds) {
  mock.timers.tick(seconds * 1000);
  await settled();
}

class FakeSocket {
  sent = [];
  /** Whether the client has said that it has no token; not in `sent`. */
  hasNoToken = false;
  isClosed = false;

  constructor(url, protocol) {
    Object.assign(this, { url, protocol });
  }

  send(text) {
    const frame = JSON.parse(text);
    if (frame.op === "auth" && frame.token === null) {
      this.hasNoToken = true;
      return;
    }
    this.sent.push(frame);
    this.onSent?.(frame);
  }

  close() {
    this.isClosed = true;
  }

  /** As the server: accept the connection and send welcome. */
  welcome(heartbeat_seconds = 20, limits = {}) {
    this.onopen({});
    this.push({ op: "welcome", session: "s", heartbeat_seconds, limits });
  }

  /** As the server: send these frames. */
  push(...frames) {
    for (const frame of frames) {
      if (!this.isClosed) this.onmessage({ data: JSON.stringify(frame) });
    }
  }

  /** Close the connection; by default with 1006, as if the network broke. */
  end(code = 1006, reason = "") {
    this.isClosed = true;
    this.onclose({ code, reason });
  }

  /** Return the frames with this op that the client has sent. */
  ops(op) {
    return this.sent.filter((frame) => frame.op === op);
  }
}

/** A client whose sockets are fakes. */
export class Wire {
  /** All sockets that the client has opened, the newest last. */
  sockets = [];
  states = [];

  constructor(options = {}) {
    const { sockets } = this;
    class WebSocket extends FakeSocket {
      constructor(...args) {
        super(...args);
        sockets.push(this);
      }
    }
    this.rt = connect({ url: "http://host/ws", storage: null, WebSocket, ...options });
    this.rt.onConnection((state, info) => this.states.push([state, info]));
  }

  get socket() {
    return this.sockets.at(-1);
  }

  /** Wait until the client has opened a socket, and send welcome. */
  async welcome(heartbeat_seconds, limits) {
    await settled();
    this.socket.welcome(heartbeat_seconds, limits);
    await settled();
    return this.socket;
  }

  /** Let time pass until the client has opened another socket, and send welcome. */
  async back(limits) {
    while (this.socket.isClosed) await pass(0.25);
    return this.welcome(undefined, limits);
  }

  /** Close the connection, wait until the client has reconnected, and send welcome. */
  async reconnect(code, limits) {
    this.socket.end(code);
    return this.back(limits);
  }
}

/** A page whose `online`, `visibilitychange` and animation frames the test triggers. */
export class Page {
  /** Listeners added and not removed. */
  listeners = 0;
  #paints = new Map();
  #window = this.#countListeners(new EventTarget());
  #document = Object.assign(this.#countListeners(new EventTarget()), { hidden: false });

  constructor() {
    let frames = 0;
    Object.assign(globalThis, {
      document: this.#document,
      addEventListener: this.#window.addEventListener,
      removeEventListener: this.#window.removeEventListener,
      requestAnimationFrame: (paint) => (this.#paints.set(++frames, paint), frames),
      cancelAnimationFrame: (frame) => this.#paints.delete(frame),
    });
  }

  /** Requested animation frames that have not run. */
  get frames() {
    return this.#paints.size;
  }

  emit(type) {
    this.#window.dispatchEvent(new Event(type));
  }

  turn(hidden) {
    this.#document.hidden = hidden;
    this.#document.dispatchEvent(new Event("visibilitychange"));
  }

  animate() {
    const paints = [...this.#paints.values()];
    this.#paints.clear();
    for (const paint of paints) paint();
  }

  #countListeners(target) {
    const add = target.addEventListener.bind(target);
    const remove = target.removeEventListener.bind(target);
    return Object.assign(target, {
      addEventListener: (...args) => (this.listeners++, add(...args)),
      removeEventListener: (...args) => (this.listeners--, remove(...args)),
    });
  }

  remove() {
    delete globalThis.document;
    delete globalThis.addEventListener;
    delete globalThis.removeEventListener;
    delete globalThis.requestAnimationFrame;
    delete globalThis.cancelAnimationFrame;
  }
}

/** A browser's storage, with a quota in characters. */
export class MemoryStorage {
  #items = new Map();

  constructor(quota = Infinity) {
    this.quota = quota;
  }

  get length() {
    return this.#items.size;
  }

  key(index) {
    return [...this.#items.keys()][index] ?? null;
  }

  getItem(key) {
    return this.#items.get(key) ?? null;
  }

  setItem(key, text) {
    if (text.length > this.quota) throw new Error("QuotaExceededError");
    this.#items.set(key, text);
  }

  removeItem(key) {
    this.#items.delete(key);
  }

  keys() {
    return [...this.#items.keys()];
  }
}

export const cursorAt = (offset, epoch = "e1") => `${epoch}.${offset}.00000000`;

export function event(offset, key = "42", more = {}) {
  const time = `2026-11-23T08:00:00.${String(offset % 1000).padStart(3, "0")}Z`;
  const state = { status: "running", at: offset };
  return { offset, type: "job_progress", time, key, state, ...more };
}

export function snapshot(topic, offset, states = {}, more = {}) {
  const cursor = cursorAt(offset);
  return { op: "sync", topic, mode: "snapshot", reason: "new", offset, cursor, states, ...more };
}

export function replay(topic, prev, events, offset = events.at(-1)?.offset ?? prev) {
  return { op: "sync", topic, mode: "replay", prev, offset, cursor: cursorAt(offset), events };
}

export function live(topic, prev, ...events) {
  const { offset } = events.at(-1);
  return { op: "events", topics: { [topic]: { prev, offset, cursor: cursorAt(offset), events } } };
}
