import { countingSocket } from "./delivery-count.js";

/** @typedef {import("./job-card.js").JobCard} JobCard */

// Served by the realtime plugin. The page works without it, and then polls.
const CLIENT = "/realtime/static/realtime.js";
const HISTORY_EVENTS = 200;
/** Reasons of a gap after which another log goes on. */
const OTHER_LOG = new Set(["epoch", "diverged", "ahead"]);

/** The live updates of a session: the user's feed, and the topics of the open jobs. */
export class LiveUpdates {
  /** @type {any} the module of the client; null: not installed; undefined: not loaded yet */
  #module;
  /** @type {any} the client; undefined before `connect` */
  #client;
  /** @type {Map<string, { close(): void }>} of the open jobs, by job id */
  #subscriptions = new Map();
  #isClosed = false;
  #status;
  #jobs;
  #library;
  #count;

  /**
   * @param {import("./connection-status.js").ConnectionStatus} status
   * @param {import("./job-list.js").JobList} jobs
   * @param {import("./library.js").Library} library
   * @param {import("./delivery-count.js").DeliveryCount} count gets every frame
   */
  constructor(status, jobs, library, count) {
    this.#count = count;
    this.#status = status;
    this.#jobs = jobs;
    this.#library = library;
  }

  async load() {
    this.#module = await import(CLIENT).catch(() => null);
  }

  /**
   * Watch the feed and the topics of the open jobs.
   *
   * @param {string} feed
   * @param {object} options
   * @param {() => Promise<null>} options.token see realtime.d.ts
   * @param {(state: string, since?: string) => void} options.onState
   */
  connect(feed, { token, onState }) {
    if (this.#isClosed) return;
    if (this.#module) {
      this.#client = this.#module.connect({
        url: "/realtime/ws",
        storage: sessionStorage,
        token,
        WebSocket: countingSocket(this.#count),
      });
      this.#client.onConnection((/** @type {string} */ state, /** @type {any} */ info) =>
        onState(state, info.since));
      this.#client.watch(feed, {
        onChange: (/** @type {any} */ view) => this.#jobs.readFeed(view),
        onEvent: (/** @type {any} */ { type, key }) => {
          if (type === "job_deleted") this.#jobs.remove(key);
        },
      });
    } else {
      onState("polling");
    }
    for (const card of this.#jobs.openCards) this.watchJob(card);
  }

  close() {
    this.#isClosed = true;
    this.#client?.close();
  }

  /** @param {JobCard} card */
  watchJob(card) {
    const { id, topic } = card.job;
    if (this.#module === null) card.log.explain("Live events need the realtime plugin.");
    if (!this.#client || this.#subscriptions.has(id)) return;
    let isFirst = true;
    let isOtherLog = false;
    let newest = 0;
    card.log.clear();
    card.log.noteGap(null);
    const subscription = this.#client.watch(topic, {
      history: HISTORY_EVENTS,
      onChange: (/** @type {any} */ view) => {
        const { isDegraded } = this.#status;
        card.readView("topic", view, this.#jobs.now);
        card.log.explain(isDegraded ? "The events appear when live updates are back."
          : card.log.isEmpty ? "This job’s events are no longer stored." : "");
        // A resumed stream has no history: the events from before the reload are fetched. So are
        // those of another log that the client does not pass on again.
        if (isFirst && !isDegraded) {
          if (view.cursor && newest === Infinity) {
            card.log.clear();
            newest = 0;
          }
          if (view.cursor && (isOtherLog || view.reason === null)) loadHistory(card, view.offset);
          isFirst = isOtherLog = false;
        }
        this.#jobs.paintSoon();
      },
      onEvent: (/** @type {any} */ event, /** @type {any} */ { replayed }) => {
        // Offsets repeat only in another log: the rows of the lost one are removed.
        if (event.offset <= newest) card.log.clear();
        newest = event.offset;
        card.log.add(event);
        if (event.type === "file_failed") card.addFailure(event.data.file, event.data.reason);
        if (!replayed) this.#markFile(event);
      },
      onGap: (/** @type {any} */ gap) => {
        if (OTHER_LOG.has(gap.reason)) {
          isFirst = isOtherLog = true;
          // Whatever follows replaces the rows of the lost log.
          newest = Infinity;
        }
        card.log.noteGap(gap);
      },
      onDenied: (/** @type {any} */ { code }) =>
        card.log.explain(code === "too_many_topics"
          ? "Too many jobs are open: close some to see this one’s events."
          : "You may not see this job’s events."),
      onGone: () => this.#jobs.remove(id),
    });
    this.#subscriptions.set(id, subscription);
  }

  /** @param {JobCard} card */
  unwatchJob(card) {
    const { id } = card.job;
    this.#subscriptions.get(id)?.close();
    this.#subscriptions.delete(id);
    card.forgetTopic();
  }

  /** @param {any} event */
  #markFile({ type, data }) {
    if (type === "file_failed") {
      this.#library.mark(data.file, { status: "failed", chunks: 0, error: data.reason });
    } else if (type === "file_completed") {
      this.#library.mark(data.file, { status: "indexed", chunks: data.chunks, error: null });
    }
  }
}

/**
 * Add the newest events up to an offset to the card's log.
 *
 * @param {JobCard} card
 * @param {number} offset
 */
async function loadHistory(card, offset) {
  const after = Math.max(0, offset - HISTORY_EVENTS);
  const path = `/realtime/jobs/${card.job.id}/history?after=${after}&limit=${HISTORY_EVENTS}`;
  const response = await fetch(path).catch(() => null);
  const { events } = response?.ok ? await response.json() : { events: [] };
  for (const event of events) card.log.add(event);
}
