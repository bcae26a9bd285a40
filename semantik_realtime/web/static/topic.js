import { call } from "./page.js";
import { plainId } from "./protocol.js";
import { applyPart, EMPTY_VIEW, isUnknown, shownStates } from "./reader.js";
import { isFinished } from "./rest.js";

/**
 * @typedef {import("./realtime.js").WatchOptions} WatchOptions
 * @typedef {import("./reader.js").ReaderView} ReaderView
 * @typedef {import("./reader.js").Step} Step
 * @typedef {Exclude<keyof WatchOptions, "history">} Callback
 */

/** One topic that the page watches: its watchers, and what the client knows of it. */
export class Topic {
  /** @readonly */
  name;
  /**
   * Whether its watchers were called with `too_many_topics`, and it is subscribed only when another
   * topic is no longer watched; written by `Subscriptions`.
   */
  isOverLimit = false;

  /** The plain id of the job; null: the topic is not of a job. */
  #job;
  /** @type {Set<WatchOptions>} */
  #watchers = new Set();
  #history = 0;
  /** @type {ReaderView} */
  #view;
  #isShown = false;
  #isFinished = false;

  /**
   * @param {string} name
   * @param {Partial<ReaderView> | null} saved of an earlier page. It is shown only after the server
   *   has allowed the topic again: another user may have logged in since it was saved.
   */
  constructor(name, saved) {
    this.name = name;
    this.#job = name.startsWith("job:") ? plainId(name) : null;
    this.#view = { ...EMPTY_VIEW, ...saved };
  }

  get view() {
    return this.#view;
  }

  /** The most events of history that one of its watchers asked for. */
  get history() {
    return this.#history;
  }

  /** Whether the server has sent something to show since the topic is watched. */
  get isShown() {
    return this.#isShown;
  }

  /** Whether nothing more happens in it, and the client has read all of it. */
  get isSettled() {
    return this.#isFinished && this.#view.synced;
  }

  get isWatched() {
    return this.#watchers.size > 0;
  }

  /**
   * @param {WatchOptions} options
   * @returns {WatchOptions} the watcher: several may have the same options
   */
  addWatcher(options) {
    const watcher = { ...options };
    this.#watchers.add(watcher);
    this.#history = Math.max(this.#history, options.history ?? 0);
    return watcher;
  }

  /** @param {WatchOptions} watcher not called any more */
  removeWatcher(watcher) {
    this.#watchers.delete(watcher);
  }

  removeWatchers() {
    this.#watchers.clear();
  }

  /**
   * Call a callback of each watcher that another one has not closed meanwhile.
   *
   * @template {Callback} C
   * @param {C} callback
   * @param {Parameters<Required<WatchOptions>[C]>} args
   */
  notify(callback, ...args) {
    for (const watcher of [...this.#watchers]) this.notifyOne(watcher, callback, ...args);
  }

  /**
   * @template {Callback} C
   * @param {WatchOptions} watcher not called if it is closed
   * @param {C} callback
   * @param {Parameters<Required<WatchOptions>[C]>} args
   */
  notifyOne(watcher, callback, ...args) {
    if (this.#watchers.has(watcher)) call(watcher[callback], ...args);
  }

  /**
   * Apply the part of a server frame that concerns this topic.
   *
   * @param {string} op
   * @param {any} part
   * @returns {Omit<Step, "view"> & { isOver: boolean }} `isOver`: the topic is gone or denied
   */
  apply(op, part) {
    if (this.#isFinished && isUnknown(op, part)) {
      // The log of a job that has ended is not kept for ever. What is shown stays, as provisional.
      this.#view = { ...this.#view, offset: 0, cursor: null, synced: true };
      return { events: [], gap: null, resubscribe: false, isOver: false };
    }
    const { view, ...step } = applyPart(this.#view, op, part);
    if (view !== this.#view) {
      this.#view = view;
      this.#isShown ||= view.synced || op === "provisional";
      this.#isFinished = isFinished(this.#job, view);
    }
    return { ...step, isOver: op === "gone" || op === "denied" };
  }

  /** The connection has ended: before the next sync the view may be behind the log. */
  disconnect() {
    this.#view = { ...this.#view, synced: false };
  }

  /**
   * Return the view for the callbacks of the page.
   *
   * @param {import("./realtime.js").ConnectionState} connection
   * @returns {import("./realtime.js").View}
   */
  shown(connection) {
    const { overlay, offset, cursor, reason, conflated, synced } = this.#view;
    const isFromLog = cursor !== null && overlay.size === 0;
    const isConnected = connection === "live" || (this.#isFinished && connection === "idle");
    const provisional = !isFromLog || !isConnected || !(synced || this.#isFinished);
    const states = shownStates(this.#view);
    return { topic: this.name, states, overlay, offset, cursor, reason, conflated, provisional };
  }
}
