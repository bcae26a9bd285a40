import { MAX_TOPICS_PER_FRAME } from "./protocol.js";

/** @typedef {import("./topic.js").Topic} Topic */

/** The topics that the page watches, and for which of them the server's limit has a place. */
export class Subscriptions {
  #send;
  /** @type {Map<string, Topic>} in the order of watching: the first ones are subscribed first */
  #topics = new Map();
  /** The most topics of a connection, from the server's `welcome`. */
  #maxTopics = Infinity;
  /** @type {Set<Topic>} to subscribe in a microtask, or when the server's limit allows more */
  #unsubscribed = new Set();
  #isDue = false;

  /** @param {(frame: object) => void} send drops the frame if there is no connection */
  constructor(send) {
    this.#send = send;
  }

  get size() {
    return this.#topics.size;
  }

  [Symbol.iterator]() {
    return this.#topics.values();
  }

  /** @param {string} name */
  get(name) {
    return this.#topics.get(name);
  }

  /** @param {Topic} topic */
  add(topic) {
    this.#topics.set(topic.name, topic);
    this.subscribeSoon(topic);
  }

  /**
   * Forget a topic that the server has ended.
   *
   * @param {Topic} topic
   * @returns {boolean} whether the topic was still there
   */
  remove(topic) {
    this.#unsubscribed.delete(topic);
    // The server's limit may allow another topic now.
    if (this.#unsubscribed.size > 0) this.#runSoon();
    return this.#topics.get(topic.name) === topic && this.#topics.delete(topic.name);
  }

  /** @param {Topic} topic that is no longer watched */
  unsubscribe(topic) {
    if (!this.remove(topic) || topic.isOverLimit) return;
    this.#send({ op: "unsubscribe", topics: [topic.name] });
  }

  /**
   * Subscribe to all topics on a new connection.
   *
   * @param {number} maxTopics the server's limit
   */
  subscribeAll(maxTopics) {
    this.#maxTopics = maxTopics;
    for (const topic of this) this.subscribeSoon(topic);
  }

  /** @param {Topic} topic */
  subscribeSoon(topic) {
    this.#unsubscribed.add(topic);
    this.#runSoon();
  }

  /** @param {Topic} topic */
  tooMany({ name }) {
    const message = `at most ${this.#maxTopics} topics`;
    return { topic: name, code: "too_many_topics", message };
  }

  /** In a microtask: topics that are watched together are subscribed in one frame. */
  #runSoon() {
    if (!this.#isDue) queueMicrotask(() => this.#subscribe());
    this.#isDue = true;
  }

  #subscribe() {
    this.#isDue = false;
    const allowed = [...this].slice(0, this.#maxTopics);
    const topics = allowed.filter((topic) => this.#unsubscribed.delete(topic));
    for (const topic of topics) topic.isOverLimit = false;
    for (const history of new Set(topics.map((topic) => topic.history))) {
      const alike = topics.filter((topic) => topic.history === history);
      for (let start = 0; start < alike.length; start += MAX_TOPICS_PER_FRAME) {
        const cursors = alike
          .slice(start, start + MAX_TOPICS_PER_FRAME)
          .map(({ name, view }) => [name, view.cursor]);
        this.#send({ op: "subscribe", topics: Object.fromEntries(cursors), history });
      }
    }
    for (const topic of [...this.#unsubscribed].filter(({ isOverLimit }) => !isOverLimit)) {
      topic.isOverLimit = true;
      topic.notify("onDenied", this.tooMany(topic));
    }
  }
}
