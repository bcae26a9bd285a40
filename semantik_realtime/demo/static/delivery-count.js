/**
 * What arrived of the watched topics, counted from the frames by `prev` and the offsets
 * (docs/protocol.md, R2): so it does not depend on what the client library does with them.
 *
 * @typedef {object} TopicCount
 * @property {number} base the offset before the first counted event
 * @property {number} mine the offset up to which every event is accounted for
 * @property {number} top the newest offset that the log was seen to have
 */

/** Reasons of a snapshot that is of another log, whose offsets begin again. */
const OTHER_LOG = new Set(["epoch", "diverged", "ahead", "recalled"]);

export class DeliveryCount {
  /** Events that arrived. */
  received = 0;
  /** Events that arrived a second time. */
  doubled = 0;
  /** Events that neither arrived nor are part of a snapshot or of a later event. */
  lost = 0;
  /** Events that a snapshot or a later event replaced, as the server said. */
  merged = 0;
  /** Events of logs that are no longer there. */
  #sentBefore = 0;
  /** @type {Map<string, TopicCount>} */
  #topics = new Map();

  /** Events in the logs, from the first counted one on. */
  get sent() {
    let sent = this.#sentBefore;
    for (const { base, top } of this.#topics.values()) sent += top - base;
    return sent;
  }

  /** @param {any} frame of the server */
  read(frame) {
    if (frame.op === "sync" && frame.mode === "snapshot") this.#readSnapshot(frame.topic, frame);
    else if (frame.op === "sync") this.#readBatch(frame.topic, frame);
    else if (frame.op === "events") {
      for (const [topic, batch] of Object.entries(frame.topics)) {
        if (this.#topics.has(topic)) this.#readBatch(topic, batch);
      }
    }
  }

  /**
   * Note how long the log is, as the server's HTTP interface tells.
   *
   * @param {string} topic
   * @param {number} offset
   */
  noteLog(topic, offset) {
    const count = this.#topics.get(topic);
    if (count) count.top = Math.max(count.top, offset);
  }

  /** @param {string} topic @param {any} snapshot */
  #readSnapshot(topic, { offset, reason, events = [] }) {
    if (!topic.startsWith("job:")) return;
    let count = this.#topics.get(topic);
    if (count && OTHER_LOG.has(reason)) {
      this.#sentBefore += count.top - count.base;
      count = undefined;
    }
    if (!count) {
      const base = (events[0]?.offset ?? offset + 1) - 1;
      count = { base, mine: base, top: base };
      this.#topics.set(topic, count);
    }
    this.#take(count, offset, events, Infinity);
  }

  /** @param {string} topic @param {any} batch */
  #readBatch(topic, { prev, offset, events = [], conflated = 0 }) {
    if (!topic.startsWith("job:")) return;
    const count = this.#topics.get(topic) ?? { base: prev, mine: prev, top: prev };
    this.#topics.set(topic, count);
    // Events are missing: the client asks for them again, and they are counted then.
    if (prev > count.mine) return;
    for (const event of events) if (event.offset <= count.mine) this.doubled += 1;
    this.#take(count, offset, events, conflated);
  }

  /**
   * @param {TopicCount} count
   * @param {number} offset up to which the events or the states reach
   * @param {{ offset: number }[]} events
   * @param {number} replaced at most this many events may be missing
   */
  #take(count, offset, events, replaced) {
    if (offset <= count.mine) return;
    const fresh = new Set(events.map((event) => event.offset).filter((each) => each > count.mine));
    const missing = offset - count.mine - fresh.size;
    this.received += fresh.size;
    this.merged += Math.min(missing, replaced);
    this.lost += Math.max(0, missing - replaced);
    count.mine = offset;
    count.top = Math.max(count.top, offset);
  }
}

/** @param {DeliveryCount} count @returns {typeof WebSocket} one that shows it each frame */
export function countingSocket(count) {
  return class extends WebSocket {
    /** @param {string | URL} url @param {string | string[]} [protocols] */
    constructor(url, protocols) {
      super(url, protocols);
      this.addEventListener("message", ({ data }) => count.read(JSON.parse(data)));
    }
  };
}
