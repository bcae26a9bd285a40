/**
 * Cursors and states that survive a reload of the page.
 *
 * The cursor of a topic and the states at that cursor are one text under one key: after a reload a
 * replay folds onto those states. If the storage fails (quota, private mode, unreadable content),
 * the topic starts from a snapshot.
 *
 * @typedef {import("./reader.js").ReaderView} ReaderView
 */

/** Of all topics together. Browsers store two bytes per character and allow about 5 MB. */
export const MAX_BYTES = 1_048_576;
const WRITE_SECONDS = 1;

export class Store {
  /** Null: nothing is saved. */
  #storage;
  /** Of the keys in the storage that belong to this client's server. */
  #prefix;
  /** @type {Map<string, ReaderView>} newest view by topic; emptied by `flush` */
  #unwritten = new Map();
  /** @type {Map<string, number>} bytes in the storage by topic, least recently written first */
  #sizes = new Map();
  /** @type {ReturnType<typeof setTimeout> | undefined} calls `flush`; set while views wait */
  #timer;

  /**
   * @param {Storage | null} storage
   * @param {string} prefix
   */
  constructor(storage, prefix) {
    this.#storage = storage;
    this.#prefix = prefix;
    tryStorage(() => {
      for (let index = 0; index < (storage?.length ?? 0); index++) {
        const key = storage?.key(index);
        if (!key?.startsWith(prefix)) continue;
        this.#sizes.set(key.slice(prefix.length), sizeOf(key, storage?.getItem(key) ?? ""));
      }
    });
  }

  /**
   * Return what was saved of a topic, or null.
   *
   * @param {string} topic
   * @returns {Pick<ReaderView, "cursor" | "offset" | "states"> | null}
   */
  load(topic) {
    const key = this.#prefix + topic;
    const saved = tryStorage(() => JSON.parse(this.#storage?.getItem(key) ?? "null"));
    const isWhole =
      typeof saved?.cursor === "string" &&
      Number.isSafeInteger(saved.offset) &&
      Array.isArray(saved.states) &&
      saved.states.every(
        (/** @type {any} */ entry) => typeof entry?.[0] === "string" && isObject(entry[1]),
      );
    return isWhole
      ? { cursor: saved.cursor, offset: saved.offset, states: new Map(saved.states) }
      : null;
  }

  /**
   * Save this view of the topic within a second; a newer view of the topic replaces it.
   *
   * @param {string} topic
   * @param {ReaderView} view
   */
  save(topic, view) {
    // A recalled view has no cursor to resume from; what was saved before it is still right.
    if (!this.#storage || view.cursor === null) return;
    this.#unwritten.set(topic, view);
    this.#timer ??= setTimeout(() => this.flush(), WRITE_SECONDS * 1000);
  }

  /** @param {string} topic */
  remove(topic) {
    this.#unwritten.delete(topic);
    this.#removeItem(topic);
  }

  /** Write the unwritten views now. */
  flush() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    for (const [topic, view] of this.#unwritten) this.#write(topic, view);
    this.#unwritten.clear();
  }

  /**
   * @param {string} topic
   * @param {ReaderView} view
   */
  #write(topic, { cursor, offset, states }) {
    const key = this.#prefix + topic;
    const text = JSON.stringify({ cursor, offset, states: [...states] });
    const bytes = sizeOf(key, text);
    this.#removeItem(topic);
    if (bytes > MAX_BYTES) return;
    let total = [...this.#sizes.values()].reduce((sum, size) => sum + size, bytes);
    for (const [oldest, size] of this.#sizes) {
      if (total <= MAX_BYTES) break;
      this.#removeItem(oldest);
      total -= size;
    }
    tryStorage(() => {
      this.#storage?.setItem(key, text);
      this.#sizes.set(topic, bytes);
    });
  }

  /** @param {string} topic */
  #removeItem(topic) {
    this.#sizes.delete(topic);
    tryStorage(() => this.#storage?.removeItem(this.#prefix + topic));
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
 * Return what `access` returns, or undefined if the storage throws.
 *
 * @template T
 * @param {() => T} access
 */
function tryStorage(access) {
  try {
    return access();
  } catch {
    return undefined;
  }
}
