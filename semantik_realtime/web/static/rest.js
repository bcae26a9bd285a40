import { hasEnded, isOpen } from "./protocol.js";

/** From the last change of everything that is watched until the connection is given back. */
const LINGER_SECONDS = 5;
/** The same, if everything had ended already when it was read. */
const GLANCE_SECONDS = 1;
/** Until a visible page reads again; twice as long each time that there was nothing new. */
const FIRST_PAUSE_SECONDS = 60;
const LONGEST_PAUSE_SECONDS = 900;

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
  #pauseSeconds = FIRST_PAUSE_SECONDS;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /** A connection is open. */
  begin() {
    this.#hasNews = false;
  }

  /** Events have arrived. */
  delay() {
    this.#hasNews = true;
    this.#pauseSeconds = FIRST_PAUSE_SECONDS;
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
    // Up to a quarter more, so that pages spread out.
    this.#after(this.#pauseSeconds * (1 + Math.random() / 4), read);
    this.#pauseSeconds = Math.min(2 * this.#pauseSeconds, LONGEST_PAUSE_SECONDS);
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
