/**
 * What outlives a reload: for each topic its cursor and the states at that cursor.
 *
 * The two are one text under one key. A cursor without its states would make a replay fold onto
 * nothing. Every failure of the storage (quota, private mode, foreign content) means only that the
 * topic starts from a snapshot.
 *
 * @typedef {import("./reader.js").Known} Known
 */

/** All topics together; browsers store two bytes a character and allow about 5 MB. */
export const MAX_BYTES = 1_048_576;
const WRITE_SECONDS = 1;

export class Store {
  #storage;
  #prefix;
  /** @type {Map<string, Known>} */
  #unwritten = new Map();
  /** @type {Map<string, number>} bytes by topic, the one written longest ago first */
  #sizes = new Map();
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /**
   * @param {Storage | null} storage
   * @param {string} prefix
   */
  constructor(storage, prefix) {
    this.#storage = storage;
    this.#prefix = prefix;
    attempt(() => {
      for (let index = 0; index < (storage?.length ?? 0); index++) {
        const key = storage?.key(index);
        if (!key?.startsWith(prefix)) continue;
        this.#sizes.set(key.slice(prefix.length), sizeOf(key, storage?.getItem(key) ?? ""));
      }
    });
  }

  /**
   * What was kept of a topic, or null.
   *
   * @param {string} topic
   * @returns {Pick<Known, "cursor" | "offset" | "states"> | null}
   */
  load(topic) {
    const kept = attempt(() => JSON.parse(this.#storage?.getItem(this.#prefix + topic) ?? "null"));
    const isWhole =
      typeof kept?.cursor === "string" &&
      Number.isSafeInteger(kept.offset) &&
      Array.isArray(kept.states) &&
      kept.states.every(
        (/** @type {any} */ entry) => typeof entry?.[0] === "string" && isObject(entry[1]),
      );
    return isWhole
      ? { cursor: kept.cursor, offset: kept.offset, states: new Map(kept.states) }
      : null;
  }

  /**
   * Keep this view of the topic; it is written within a second.
   *
   * @param {string} topic
   * @param {Known} view
   */
  keep(topic, view) {
    // A recalled view has no cursor to resume from; the pair kept before is still right.
    if (!this.#storage || view.cursor === null) return;
    this.#unwritten.set(topic, view);
    this.#timer ??= setTimeout(() => this.flush(), WRITE_SECONDS * 1000);
  }

  /** @param {string} topic */
  forget(topic) {
    this.#unwritten.delete(topic);
    this.#remove(topic);
  }

  /** Write now what waits to be written. */
  flush() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    for (const [topic, view] of this.#unwritten) this.#write(topic, view);
    this.#unwritten.clear();
  }

  /**
   * @param {string} topic
   * @param {Known} view
   */
  #write(topic, { cursor, offset, states }) {
    const key = this.#prefix + topic;
    const text = JSON.stringify({ cursor, offset, states: [...states] });
    const bytes = sizeOf(key, text);
    this.#remove(topic);
    if (bytes > MAX_BYTES) return;
    let total = [...this.#sizes.values()].reduce((sum, size) => sum + size, bytes);
    for (const [oldest, size] of this.#sizes) {
      if (total <= MAX_BYTES) break;
      this.#remove(oldest);
      total -= size;
    }
    attempt(() => {
      this.#storage?.setItem(key, text);
      this.#sizes.set(topic, bytes);
    });
  }

  /** @param {string} topic */
  #remove(topic) {
    this.#sizes.delete(topic);
    attempt(() => this.#storage?.removeItem(this.#prefix + topic));
  }
}

/**
 * @param {string} key
 * @param {string} text
 */
function sizeOf(key, text) {
  return 2 * (key.length + text.length);
}

/** @param {unknown} value */
function isObject(value) {
  return typeof value === "object" && value !== null;
}

/**
 * What `act` returns, or undefined when the storage refuses.
 *
 * @template T
 * @param {() => T} act
 */
function attempt(act) {
  try {
    return act();
  } catch {
    return undefined;
  }
}
