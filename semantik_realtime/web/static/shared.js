/**
 * What the hooks of all frameworks share: one connection, and for each topic one watcher that all
 * components use. Nothing here needs a browser before the first component subscribes.
 */

import { call } from "./page.js";
import { plainId, topicName } from "./protocol.js";
import { connect } from "./realtime.js";

/**
 * @typedef {import("./realtime.js").Realtime} Realtime
 * @typedef {import("./realtime.js").RealtimeEvent} RealtimeEvent
 * @typedef {import("./realtime.js").Gap} Gap
 * @typedef {import("./hooks.js").Topic} TopicSnapshot
 * @typedef {import("./hooks.js").ConnectionSnapshot} ConnectionSnapshot
 *
 * @typedef {object} Listener
 * @property {() => void} [onChange] the snapshot is another one
 * @property {(event: RealtimeEvent, how: { replayed: boolean }) => void} [onEvent]
 * @property {(gap: Gap) => void} [onGap]
 */

/**
 * How long a topic stays watched after its last component is gone: StrictMode's second mount, and a
 * change of the page, then find it as it was.
 */
const LINGER_SECONDS = 2;
/** How long a topic stays watched for a component that waits for it before it is mounted. */
const WAIT_SECONDS = 30;

/** @type {ConnectionSnapshot} before the first component has subscribed, and on a server */
export const NOT_CONNECTED = Object.freeze({ state: "connecting", info: Object.freeze({}) });

/** @type {readonly never[]} */
const NO_EVENTS = Object.freeze([]);

/** @param {string | null} topic null: nothing is watched */
function emptySnapshot(topic) {
  return Object.freeze({
    topic,
    id: topic === null ? null : plainId(topic),
    view: null,
    events: NO_EVENTS,
    denied: null,
    gone: false,
    loading: topic !== null,
  });
}

/** @type {Map<string | null, TopicSnapshot>} so that the same topic has the same empty snapshot */
const EMPTY = new Map();
const MAX_EMPTY = 1000;

/**
 * Return what is known of a topic before it is watched.
 *
 * @param {string | null} topic
 * @returns {TopicSnapshot}
 */
export function emptyTopic(topic) {
  const known = EMPTY.get(topic);
  if (known) return known;
  if (EMPTY.size >= MAX_EMPTY) EMPTY.clear();
  const empty = emptySnapshot(topic);
  EMPTY.set(topic, empty);
  return empty;
}

/** One topic with one history: a watcher of the client, while components or a promise need it. */
class Watched {
  /** @type {TopicSnapshot} replaced, never changed */
  snapshot;
  /** @type {Promise<void>} resolved when there is something to show, or never will be */
  ready;

  #history;
  #isOver = false;
  /** @type {Set<Listener>} */
  #listeners = new Set();
  /** @type {() => void} */
  #resolve = () => {};
  #subscription;
  #onUnused;
  /** @type {ReturnType<typeof setTimeout> | undefined} set while nobody listens */
  #timer;

  /**
   * @param {Realtime} connection
   * @param {string} topic
   * @param {number} history
   * @param {() => void} onUnused called once, when the watcher is closed
   */
  constructor(connection, topic, history, onUnused) {
    this.#history = history;
    this.#onUnused = onUnused;
    this.snapshot = emptyTopic(topic);
    this.ready = new Promise((resolve) => (this.#resolve = resolve));
    this.#subscription = connection.watch(topic, {
      history,
      onChange: (view) => this.#set({ view, denied: null, loading: false }),
      onEvent: (event, how) => {
        if (history > 0) {
          /** @type {any[]} */
          const events = [...this.snapshot.events, event];
          this.#set({ events: events.slice(-history) });
        }
        for (const { onEvent } of [...this.#listeners]) call(onEvent, event, how);
      },
      onGap: (gap) => {
        for (const { onGap } of [...this.#listeners]) call(onGap, gap);
      },
      onDenied: (denied) => {
        // With this code the client goes on by itself; else a component mounted later tries again.
        this.#isOver = denied.code !== "too_many_topics";
        this.#set({ denied, loading: false });
      },
      onGone: () => {
        this.#isOver = true;
        this.#set({ gone: true, loading: false });
      },
    });
    this.#closeIn(WAIT_SECONDS);
  }

  /** Whether the subscription has ended, and nobody shows why any more. */
  get isSpent() {
    return this.#isOver && this.#listeners.size === 0;
  }

  /** @param {Listener} listener */
  add(listener) {
    clearTimeout(this.#timer);
    this.#listeners.add(listener);
    return () => {
      if (this.#listeners.delete(listener) && this.#listeners.size === 0) this.#closeIn(LINGER_SECONDS);
    };
  }

  close() {
    clearTimeout(this.#timer);
    this.#subscription.close();
    this.#onUnused();
    this.#resolve();
  }

  /** @param {number} seconds from now, unless a listener comes */
  #closeIn(seconds) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.close(), seconds * 1000);
  }

  /** @param {Partial<TopicSnapshot>} changed */
  #set(changed) {
    this.snapshot = Object.freeze({ ...this.snapshot, ...changed });
    if (!this.snapshot.loading) this.#resolve();
    for (const { onChange } of [...this.#listeners]) onChange?.();
  }
}

/** A connection with the topics that components watch through it. */
export class Shared {
  /** @type {ConnectionSnapshot} */
  #state = NOT_CONNECTED;
  #source;
  /** @type {Realtime | null} made when it is first needed */
  #connection = null;
  /** @type {Map<string, Watched>} by history and topic */
  #watched = new Map();
  /** @type {Set<() => void>} */
  #listeners = new Set();

  /** @param {Realtime | (() => Realtime)} source a function is called in browsers only */
  constructor(source) {
    this.#source = source;
  }

  /** The connection: it is made now, if it was not before, or if it was closed. */
  get connection() {
    const { connection: state } = this.#connection ?? {};
    const isOver = state === undefined || state === "closed";
    if (this.#connection && !(isOver && typeof this.#source === "function")) {
      return this.#connection;
    }
    for (const watched of [...this.#watched.values()]) watched.close();
    const made = typeof this.#source === "function" ? this.#source() : this.#source;
    this.#connection = made;
    made.onConnection((state, info) => {
      if (made !== this.#connection) return;
      this.#state = Object.freeze({ state, info });
      for (const listener of [...this.#listeners]) listener();
    });
    return made;
  }

  get state() {
    return this.#state;
  }

  /** @param {() => void} listener */
  onState(listener) {
    this.#listeners.add(listener);
    // Reading it connects.
    void this.connection;
    return () => void this.#listeners.delete(listener);
  }

  /**
   * Return what is known of a topic, without watching it.
   *
   * @param {string | null} topic
   * @param {number} history
   */
  peek(topic, history) {
    const watched = this.#watched.get(`${history} ${topic}`);
    return watched?.snapshot ?? emptyTopic(topic);
  }

  /**
   * Watch a topic until two seconds after its last listener has left.
   *
   * @param {string} topic
   * @param {number} history
   * @returns {Watched}
   * @throws as `watch` of the client
   */
  watch(topic, history) {
    const { connection } = this;
    const key = `${history} ${topic}`;
    const known = this.#watched.get(key);
    if (known && !known.isSpent) return known;
    known?.close();
    const watched = new Watched(connection, topic, history, () => {
      if (this.#watched.get(key) === watched) this.#watched.delete(key);
    });
    this.#watched.set(key, watched);
    return watched;
  }
}

const byDefault = new Shared(() => connect());
/** @type {WeakMap<Realtime, Shared>} */
const byConnection = new WeakMap();

/**
 * Return what is shared by all components that use this connection.
 *
 * @param {Realtime | (() => Realtime) | undefined | null} source none: a connection with the
 *   default options
 */
export function sharedBy(source) {
  if (!source) return byDefault;
  if (typeof source === "function") return new Shared(source);
  const known = byConnection.get(source) ?? new Shared(source);
  byConnection.set(source, known);
  return known;
}

/**
 * @param {string | null | undefined} id of a job, as the application has it
 * @returns {string | null} the name of its topic
 */
export function jobTopic(id) {
  return id === null || id === undefined || id === "" ? null : nameOf(`job:${id}`);
}

/**
 * @param {string | null | undefined} topic
 * @throws {TypeError} if no topic has that name
 */
export function nameOf(topic) {
  if (topic === null || topic === undefined || topic === "") return null;
  const name = topicName(topic);
  if (name === null) throw new TypeError(`not a topic: ${JSON.stringify(topic)}`);
  return name;
}

/**
 * Return a job's members beside those of its topic.
 *
 * @param {TopicSnapshot} snapshot
 * @returns {any} a `Job`, the same for the same snapshot
 */
export function asJob(snapshot) {
  return cached(JOBS, snapshot, () => {
    const state = snapshot.view?.states.get(snapshot.id ?? "") ?? null;
    return { ...snapshot, state, status: state?.status ?? null, ...shownOf(snapshot) };
  });
}

/**
 * @param {TopicSnapshot} snapshot
 * @returns {any} a `Feed`, the same for the same snapshot
 */
export function asFeed(snapshot) {
  return cached(FEEDS, snapshot, () => {
    return { ...snapshot, jobs: snapshot.view?.states ?? NO_JOBS, ...shownOf(snapshot) };
  });
}

/** @type {WeakMap<TopicSnapshot, any>} */
const JOBS = new WeakMap();
/** @type {WeakMap<TopicSnapshot, any>} */
const FEEDS = new WeakMap();
const NO_JOBS = new Map();

/** @param {TopicSnapshot} snapshot */
function shownOf({ view }) {
  return { provisional: view?.provisional ?? true };
}

/**
 * @param {WeakMap<TopicSnapshot, any>} cache
 * @param {TopicSnapshot} snapshot
 * @param {() => any} make
 */
function cached(cache, snapshot, make) {
  const known = cache.get(snapshot);
  if (known) return known;
  const made = Object.freeze(make());
  cache.set(snapshot, made);
  return made;
}

/**
 * Return true if two selections show the same: equal values, or objects and lists of equal members.
 *
 * @param {any} a
 * @param {any} b
 */
export function isSame(a, b) {
  if (Object.is(a, b)) return true;
  if (!isPlain(a) || !isPlain(b) || Array.isArray(a) !== Array.isArray(b)) return false;
  const keys = Object.keys(a);
  return (
    keys.length === Object.keys(b).length &&
    keys.every((key) => Object.hasOwn(b, key) && Object.is(a[key], b[key]))
  );
}

/** @param {unknown} value */
function isPlain(value) {
  if (typeof value !== "object" || value === null) return false;
  const prototype = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null || Array.isArray(value);
}

/**
 * Return the id of the job that a host's route has started.
 *
 * @param {unknown} answer the id, or an object with `id`, `job_id` or `job`
 * @throws {TypeError} if it names no job
 */
export function startedId(answer) {
  const { id, job_id, job } = /** @type {any} */ (answer ?? {});
  const named = typeof answer === "object" ? (job_id ?? job ?? id) : answer;
  if (typeof named === "string" && named !== "") return named;
  if (typeof named === "number") return String(named);
  throw new TypeError(`the start of a job returned no id: ${JSON.stringify(answer)}`);
}
