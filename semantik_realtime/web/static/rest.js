import { hasEnded, isOpen } from "./protocol.js";

/** From the last change of everything that is watched until the connection is given back. */
const LINGER_SECONDS = 5;
/** The same, if everything had ended already when it was read. */
const GLANCE_SECONDS = 1;
/** Between two readings by a visible page, and up to a quarter more, so that pages spread out. */
const READ_AGAIN_SECONDS = 60;

/**
 * Return true if nothing more happens in a job's topic, unless a new attempt of the job begins: the
 * job has ended, and none of its children goes on.
 *
 * @param {string | null} job the plain id; null: the topic is not of a job, and never ends
 * @param {import("./reader.js").ReaderView} view
 */
export function isFinished(job, { states, overlay }) {
  const state = job === null ? undefined : states.get(job);
  return !!state && hasEnded(state) && overlay.size === 0 && ![...states.values()].some(isOpen);
}

/** The pauses of a client whose topics are all finished: one timer, for what it does next. */
export class Rest {
  /** Whether events have arrived on this connection. */
  #hasNews = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /** A connection is open. */
  begin() {
    this.#hasNews = false;
  }

  /** Events have arrived. */
  delay() {
    this.#hasNews = true;
  }

  /**
   * Give the connection back soon.
   *
   * @param {boolean} isRead whether there was something to read, and it was finished
   * @param {() => void} rest
   */
  restSoon(isRead, rest) {
    this.#after(isRead && !this.#hasNews ? GLANCE_SECONDS : LINGER_SECONDS, rest);
  }

  /** @param {() => void} read */
  readLater(read) {
    this.#after(READ_AGAIN_SECONDS * (1 + Math.random() / 4), read);
  }

  stop() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  /**
   * @param {number} seconds
   * @param {() => void} act
   */
  #after(seconds, act) {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      act();
    }, seconds * 1000);
  }
}
