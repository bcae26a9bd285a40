import { socketAddress } from "./address.js";
import { Commands } from "./commands.js";
import { Connection } from "./connection.js";
import { Hints } from "./hints.js";
import { call, listenToPage, ownStorage } from "./page.js";
import { Painter } from "./paint.js";
import { deniedCode, MAX_HISTORY_EVENTS, topicName } from "./protocol.js";
import { partsByTopic } from "./reader.js";
import { Rest } from "./rest.js";
import { Store } from "./store.js";
import { Subscriptions } from "./subscriptions.js";
import { Topic } from "./topic.js";

export { summarize } from "./summary.js";

/**
 * @typedef {import("./realtime.js").ConnectOptions} ConnectOptions
 * @typedef {import("./realtime.js").WatchOptions} WatchOptions
 * @typedef {import("./realtime.js").ConnectionListener} ConnectionListener
 */

/** @type {typeof import("./realtime.js").connect} */
export function connect(options = {}) {
  return new Realtime(options);
}

class Realtime {
  #commands;
  #connection;
  #hints;
  #rest = new Rest();
  #store;
  #subscriptions = new Subscriptions((frame) => this.#connection.send(frame));
  #painter = new Painter((/** @type {Topic} */ topic) => this.#paint(topic));
  /** Whether there was a connection since the page was loaded. */
  #wasOpen = false;
  /** @type {Set<ConnectionListener>} */
  #listeners = new Set();
  #stopListeningToPage;

  /** @param {ConnectOptions} options */
  constructor({ url, token, storage, WebSocket = globalThis.WebSocket }) {
    const address = socketAddress(url);
    this.#commands = new Commands(address, token);
    this.#hints = new Hints(address, token !== undefined);
    this.#store = new Store(
      storage === undefined ? ownStorage() : storage,
      `semantik-realtime:${address}:`,
    );
    this.#connection = new Connection({
      url: address,
      token,
      WebSocket,
      onFrame: (frame) => this.#receive(frame),
      onState: () => this.#handleState(),
    });
    this.#stopListeningToPage = listenToPage({
      onBack: () => this.#readAgain(),
      onLeave: () => this.#store.flush(),
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
   * @param {string} asked
   * @param {WatchOptions} options
   */
  watch(asked, options = {}) {
    const { history = 0 } = options;
    const name = topicName(asked);
    if (name === null) throw new TypeError(`not a topic: ${JSON.stringify(asked)}`);
    if (!Number.isInteger(history) || history < 0 || history > MAX_HISTORY_EVENTS) {
      throw new RangeError(`history is ${history}, not 0 to ${MAX_HISTORY_EVENTS}`);
    }
    if (this.connection === "closed") throw new Error(`watch ${name}: closed`);

    const topic = this.#subscriptions.get(name) ?? this.#addTopic(name);
    const watcher = topic.addWatcher(options);
    if (topic.isShown || topic.isOverLimit) {
      // Not before `watch` returns: a callback may want to close the subscription.
      queueMicrotask(() => {
        const { isShown, isOverLimit } = topic;
        if (isShown) topic.notifyOne(watcher, "onChange", topic.shown(this.connection));
        if (isOverLimit) topic.notifyOne(watcher, "onDenied", this.#subscriptions.tooMany(topic));
      });
    }
    if (this.connection === "denied") {
      queueMicrotask(() => topic.notifyOne(watcher, "onDenied", this.#refusal(topic)));
    }
    if (this.connection === "idle") this.#connection.wake();
    this.#restIfFinished();
    return { topic: name, close: () => this.#removeWatcher(topic, watcher) };
  }

  /** @param {string} job */
  cancel(job) {
    return this.#commands.send(job, "cancel");
  }

  /** @param {string} job */
  async retry(job) {
    const answer = await this.#commands.send(job, "retry");
    // A job that had ended, which a page that is idle watches, may go on.
    if (this.connection === "idle") this.#connection.wake();
    return answer;
  }

  close() {
    this.#stopListeningToPage();
    this.#rest.stop();
    this.#store.flush();
    for (const topic of this.#subscriptions) topic.removeWatchers();
    this.#connection.close();
  }

  /** @param {string} name */
  #addTopic(name) {
    const topic = new Topic(name, this.#store.load(name));
    this.#subscriptions.add(topic);
    return topic;
  }

  /**
   * @param {Topic} topic
   * @param {WatchOptions} watcher
   */
  #removeWatcher(topic, watcher) {
    topic.removeWatcher(watcher);
    if (topic.isWatched) return;
    this.#subscriptions.unsubscribe(topic);
    this.#restIfFinished();
  }

  /** @param {any} frame */
  #receive(frame) {
    if (frame.op === "welcome") {
      this.#subscriptions.subscribeAll(frame.limits?.topics ?? Infinity);
    }
    if (frame.op === "events") this.#rest.delay();
    if (frame.op === "error") this.#hints.mistaken(frame.code, frame.message);
    if (frame.op === "restored") {
      for (const topic of this.#subscriptions) this.#apply(topic, frame.op, frame);
    }
    for (const [name, part] of partsByTopic(frame)) {
      const topic = this.#subscriptions.get(name);
      if (topic) this.#apply(topic, frame.op, part);
    }
    this.#restIfFinished();
  }

  /**
   * @param {Topic} topic
   * @param {string} op
   * @param {any} part
   */
  #apply(topic, op, part) {
    const before = topic.view;
    const { events, gap, resubscribe, isOver } = topic.apply(op, part);
    if (isOver) {
      this.#end(topic, op, part);
      return;
    }
    if (topic.view !== before) {
      this.#store.save(topic.name, topic.view);
      this.#paintSoon(topic);
    }
    if (resubscribe) this.#subscriptions.subscribeSoon(topic);
    // Before the events, which follow the gap: a list of them can begin again.
    if (gap) topic.notify("onGap", gap);
    for (const { event, replayed } of events) topic.notify("onEvent", event, { replayed });
  }

  /**
   * @param {Topic} topic
   * @param {string} op `gone` or `denied`
   * @param {any} part
   */
  #end(topic, op, { code, message }) {
    this.#subscriptions.remove(topic);
    this.#painter.drop(topic);
    this.#store.remove(topic.name);
    if (op === "gone") {
      topic.notify("onGone");
    } else {
      this.#hints.denied(topic.name);
      topic.notify("onDenied", { topic: topic.name, code, message });
    }
  }

  /** The connection's state has changed, and with it `provisional` of each view. */
  #handleState() {
    const { state, info } = this.#connection;
    this.#rest.stop();
    for (const topic of this.#subscriptions) {
      if (state !== "live" && state !== "degraded") topic.disconnect();
      this.#paintSoon(topic);
    }
    if (state === "live") this.#rest.begin();
    if (state === "idle") this.#rest.readLater(() => this.#readAgain());
    if (state === "denied") this.#hints.refused(info.code, info.reason);
    if (state === "reconnecting") this.#hints.retrying(info.code, info.reason, this.#wasOpen);
    this.#wasOpen ||= state === "live";
    for (const listener of [...this.#listeners]) call(listener, state, info);
    if (state !== "denied") return;
    for (const topic of this.#subscriptions) topic.notify("onDenied", this.#refusal(topic));
  }

  /**
   * The server refuses the connection, and so every topic.
   *
   * @param {Topic} topic
   */
  #refusal({ name }) {
    const { code, reason } = this.#connection.info;
    const message = reason || `the server refuses the connection (${code})`;
    return { topic: name, code: deniedCode(code), message };
  }

  /** Give the connection back soon, if nothing that is watched can still change. */
  #restIfFinished() {
    if (this.connection === "idle") return;
    const topics = [...this.#subscriptions];
    const isAllFinished = topics.every((topic) => topic.isSettled);
    if (this.connection !== "live" || !isAllFinished) this.#rest.stop();
    else this.#rest.restSoon(topics.length > 0, () => this.#connection.rest());
  }

  /** The page is shown, or the network is back, or the client has rested for long enough. */
  #readAgain() {
    const mayRest = this.connection === "idle";
    // A hidden page reads when it is shown.
    if (mayRest && (this.#subscriptions.size === 0 || globalThis.document?.hidden)) return;
    this.#connection.wake();
  }

  /** @param {Topic} topic */
  #paintSoon(topic) {
    if (topic.isShown) this.#painter.paintSoon(topic);
  }

  /** @param {Topic} topic */
  #paint(topic) {
    topic.notify("onChange", topic.shown(this.connection));
  }
}
