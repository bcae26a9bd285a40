import { Connection } from "./connection.js";
import { nextFrame } from "./paint.js";
import { parts, read, shown, UNKNOWN } from "./reader.js";
import { Store } from "./store.js";

/**
 * @typedef {import("./realtime.js").ConnectOptions} ConnectOptions
 * @typedef {import("./realtime.js").WatchOptions} WatchOptions
 * @typedef {import("./realtime.js").ConnectionListener} ConnectionListener
 * @typedef {import("./realtime.js").View} View
 *
 * @typedef {object} Topic
 * @property {string} name
 * @property {number} history
 * @property {Set<WatchOptions>} watchers
 * @property {import("./reader.js").Known} view
 * @property {boolean} answered whether the server has shown something since the page watches it
 * @property {boolean} waits for a place: the server allows no more topics, and its watchers know it
 */

const TOPIC = /^[a-z][a-z0-9_]{0,31}:[A-Za-z0-9_][A-Za-z0-9_.@=+~-]{0,199}$/;
const MAX_HISTORY = 1000;
// Keeps a subscribe frame of the longest names below the server's limit of 64 KiB.
const TOPICS_A_FRAME = 100;

/** @type {typeof import("./realtime.js").connect} */
export function connect(options = {}) {
  return new Realtime(options);
}

class Realtime {
  #connection;
  #store;
  /** @type {Map<string, Topic>} in the order of watching: the first have the places */
  #topics = new Map();
  /** Topics a connection may have; the server says it in its welcome. */
  #limit = Infinity;
  /** @type {Set<Topic>} to be subscribed, together, after the running code, as places allow */
  #unasked = new Set();
  #isAskDue = false;
  /** @type {Set<Topic>} to be painted with the next frame */
  #unpainted = new Set();
  #isPaintDue = false;
  /** @type {Set<ConnectionListener>} */
  #listeners = new Set();
  #unhook;

  /** @param {ConnectOptions} options */
  constructor({ url = "/realtime/ws", token, storage, WebSocket = globalThis.WebSocket }) {
    const address = new URL(url, globalThis.location?.href);
    address.protocol = address.protocol.replace(/^http/, "ws");
    this.#store = new Store(
      storage === undefined ? ownStorage() : storage,
      `semantik-realtime:${address.href}:`,
    );
    this.#connection = new Connection({
      url: address.href,
      token,
      WebSocket,
      onFrame: (frame) => this.#receive(frame),
      onState: () => this.#tell(),
    });
    this.#unhook = listenToPage({
      back: () => this.#connection.wake(),
      leaving: () => this.#store.flush(),
    });
    this.#connection.open();
  }

  get connection() {
    return this.#connection.state;
  }

  /** @param {ConnectionListener} listener */
  onConnection(listener) {
    this.#listeners.add(listener);
    call(listener, this.#connection.state, this.#connection.info);
    return () => void this.#listeners.delete(listener);
  }

  /**
   * @param {string} name
   * @param {WatchOptions} options
   */
  watch(name, options = {}) {
    const { history = 0 } = options;
    if (!TOPIC.test(name)) throw new TypeError(`not a topic: ${JSON.stringify(name)}`);
    if (!Number.isInteger(history) || history < 0 || history > MAX_HISTORY) {
      throw new RangeError(`history is ${history}, not 0 to ${MAX_HISTORY}`);
    }
    if (this.connection === "closed") throw new Error(`watch ${name}: closed`);

    const topic = this.#topics.get(name) ?? this.#enter(name);
    const watcher = { ...options };
    topic.watchers.add(watcher);
    topic.history = Math.max(topic.history, history);
    if (topic.answered || topic.waits) {
      // Not at this very moment: the caller does not have its subscription yet.
      queueMicrotask(() => {
        if (!topic.watchers.has(watcher)) return;
        if (topic.answered) call(watcher.onChange, this.#view(topic));
        if (topic.waits) call(watcher.onDenied, this.#noPlace(topic));
      });
    }
    return { topic: name, close: () => this.#leave(topic, watcher) };
  }

  close() {
    this.#unhook();
    this.#store.flush();
    for (const topic of this.#topics.values()) topic.watchers.clear();
    this.#connection.close();
  }

  /**
   * @param {string} name
   * @returns {Topic}
   */
  #enter(name) {
    // What was kept is shown only after the server has allowed the topic again: since it was
    // written, somebody else may have logged in.
    const view = { ...UNKNOWN, ...this.#store.load(name) };
    const topic = { name, history: 0, watchers: new Set(), view, answered: false, waits: false };
    this.#topics.set(name, topic);
    this.#ask(topic);
    return topic;
  }

  /**
   * @param {Topic} topic
   * @param {WatchOptions} watcher
   */
  #leave(topic, watcher) {
    topic.watchers.delete(watcher);
    if (topic.watchers.size > 0 || !this.#forget(topic) || topic.waits) return;
    this.#connection.send({ op: "unsubscribe", topics: [topic.name] });
  }

  /**
   * @param {Topic} topic
   * @returns {boolean} whether it was still ours to forget
   */
  #forget(topic) {
    this.#unasked.delete(topic);
    this.#unpainted.delete(topic);
    // Its place may be free now.
    if (this.#unasked.size > 0) this.#askSoon();
    return this.#topics.get(topic.name) === topic && this.#topics.delete(topic.name);
  }

  /** @param {any} frame */
  #receive(frame) {
    if (frame.op === "welcome") {
      this.#limit = frame.limits?.topics ?? Infinity;
      for (const topic of this.#topics.values()) this.#ask(topic);
    }
    if (frame.op === "error") console.warn(`realtime: ${frame.code}: ${frame.message}`);
    if (frame.op === "restored") {
      for (const topic of this.#topics.values()) this.#read(topic, frame.op, frame);
    }
    for (const [name, part] of parts(frame)) {
      const topic = this.#topics.get(name);
      if (topic) this.#read(topic, frame.op, part);
    }
  }

  /**
   * @param {Topic} topic
   * @param {string} op
   * @param {any} part
   */
  #read(topic, op, part) {
    const before = topic.view;
    const { view, events, resubscribe } = read(before, op, part);
    topic.view = view;
    if (op === "gone" || op === "denied") {
      this.#forget(topic);
      this.#store.forget(topic.name);
      const { code, message } = part;
      for (const watcher of topic.watchers) {
        if (op === "gone") call(watcher.onGone);
        else call(watcher.onDenied, { topic: topic.name, code, message });
      }
      return;
    }
    if (view !== before) {
      topic.answered ||= view.synced || op === "provisional";
      this.#store.keep(topic.name, view);
      this.#repaint(topic);
    }
    if (resubscribe) this.#ask(topic);
    for (const { event, replayed } of events) {
      for (const watcher of [...topic.watchers]) {
        if (topic.watchers.has(watcher)) call(watcher.onEvent, event, { replayed });
      }
    }
  }

  /** @param {Topic} topic */
  #ask(topic) {
    this.#unasked.add(topic);
    this.#askSoon();
  }

  #askSoon() {
    if (!this.#isAskDue) queueMicrotask(() => this.#subscribe());
    this.#isAskDue = true;
  }

  #subscribe() {
    this.#isAskDue = false;
    const topics = [...this.#topics.values()].slice(0, this.#limit);
    const asked = topics.filter((topic) => this.#unasked.delete(topic));
    for (const topic of asked) topic.waits = false;
    for (const history of new Set(asked.map((topic) => topic.history))) {
      const alike = asked.filter((topic) => topic.history === history);
      for (let start = 0; start < alike.length; start += TOPICS_A_FRAME) {
        const cursors = alike
          .slice(start, start + TOPICS_A_FRAME)
          .map(({ name, view }) => [name, view.cursor]);
        this.#connection.send({ op: "subscribe", topics: Object.fromEntries(cursors), history });
      }
    }
    for (const topic of [...this.#unasked].filter(({ waits }) => !waits)) {
      topic.waits = true;
      for (const watcher of [...topic.watchers]) {
        if (topic.watchers.has(watcher)) call(watcher.onDenied, this.#noPlace(topic));
      }
    }
  }

  /** @param {Topic} topic */
  #noPlace({ name }) {
    const message = `at most ${this.#limit} topics`;
    return { topic: name, code: "too_many_topics", message };
  }

  /** The connection's state has changed, and with it what the views are worth. */
  #tell() {
    const { state, info } = this.#connection;
    for (const topic of this.#topics.values()) {
      if (state !== "live" && state !== "degraded") topic.view = { ...topic.view, synced: false };
      this.#repaint(topic);
    }
    for (const listener of [...this.#listeners]) call(listener, state, info);
  }

  /** @param {Topic} topic */
  #repaint(topic) {
    if (!topic.answered) return;
    this.#unpainted.add(topic);
    if (!this.#isPaintDue) nextFrame(() => this.#paint());
    this.#isPaintDue = true;
  }

  #paint() {
    this.#isPaintDue = false;
    const topics = [...this.#unpainted];
    this.#unpainted.clear();
    for (const topic of topics) {
      const view = this.#view(topic);
      for (const watcher of [...topic.watchers]) {
        if (topic.watchers.has(watcher)) call(watcher.onChange, view);
      }
    }
  }

  /**
   * @param {Topic} topic
   * @returns {View}
   */
  #view({ name, view }) {
    const { overlay, offset, cursor, reason, synced } = view;
    const isOfTheLog = synced && cursor !== null && overlay.size === 0;
    const provisional = this.connection !== "live" || !isOfTheLog;
    return { topic: name, states: shown(view), overlay, offset, cursor, reason, provisional };
  }
}

/**
 * Call what the page gave us; its failure is its own and must not end the stream.
 *
 * @template {unknown[]} A
 * @param {((...args: A) => unknown) | undefined} callback
 * @param {A} args
 */
function call(callback, ...args) {
  try {
    callback?.(...args);
  } catch (error) {
    console.error(error);
  }
}

/** The storage of this tab, or null where there is none or it is forbidden. */
function ownStorage() {
  try {
    return globalThis.sessionStorage ?? null;
  } catch {
    return null;
  }
}

/**
 * @param {{ back: () => void, leaving: () => void }} on
 * @returns {() => void} stops listening
 */
function listenToPage({ back, leaving }) {
  const page = globalThis.document;
  const turn = () => (page.hidden ? leaving() : back());
  globalThis.addEventListener?.("online", back);
  globalThis.addEventListener?.("pagehide", leaving);
  page?.addEventListener("visibilitychange", turn);
  return () => {
    globalThis.removeEventListener?.("online", back);
    globalThis.removeEventListener?.("pagehide", leaving);
    page?.removeEventListener("visibilitychange", turn);
  };
}
