const WINDOW_SECONDS = 12;
const MIN_SECONDS = 0.8;
/** An estimate that differs from the shown time by less than this is approached gradually. */
const MIN_JUMP_SECONDS = 5;
const EASING_SECONDS = 3;
/** After this time without progress there is no estimate, only the time itself. */
const SILENT_SECONDS = 3;

/**
 * Measures how fast a job is, and how long it still needs.
 *
 * The rate is that of the last seconds and includes the time since the newest sample, so that it
 * falls while nothing arrives. All times are seconds of one clock, passed by the caller.
 */
export class Pace {
  /** @type {{ at: number, current: number }[]} oldest first, of the last WINDOW_SECONDS */
  #samples = [];
  /** @type {{ at: number, seconds: number } | null} the last result of `secondsLeft` */
  #shown = null;

  /** @param {number} at when the job began, with nothing done */
  start(at) {
    this.#restart([{ at, current: 0 }]);
  }

  /** @param {{ at: number, current: number }[]} samples */
  #restart(samples) {
    this.#samples = samples;
    this.#shown = null;
  }

  get isStarted() {
    return this.#samples.length > 0;
  }

  /** @param {number} at @param {number} current units done until then */
  add(at, current) {
    const last = this.#samples.at(-1);
    if (last && current === last.current) return;
    // Fewer than before: a new attempt, and its beginning is not known.
    if (last && current < last.current) this.#restart([]);
    this.#samples.push({ at, current });
    while (this.#samples.length > 2 && this.#samples[1].at < at - WINDOW_SECONDS) {
      this.#samples.shift();
    }
  }

  /**
   * Return for how many seconds there has been no progress, or null if that is no longer than usual.
   *
   * @param {number} at
   */
  silence(at) {
    const first = this.#samples[0];
    const last = this.#samples.at(-1);
    if (!first || !last) return null;
    const units = last.current - first.current;
    // Slow jobs need longer than that for each unit.
    const usual = units ? (2 * (last.at - first.at)) / units : 0;
    const seconds = at - last.at;
    return seconds < Math.max(SILENT_SECONDS, usual) ? null : seconds;
  }

  /**
   * Return units per second, or null while there are too few samples.
   *
   * @param {number} at
   */
  rate(at) {
    const first = this.#samples[0];
    const last = this.#samples.at(-1);
    if (!first || !last || last.current === first.current) return null;
    // The time since the last sample counts only as far as it exceeds the typical time of a unit.
    // Otherwise the rate would fall and rise with every unit.
    const typical = (last.at - first.at) / (last.current - first.current);
    const seconds = Math.max(last.at, at - typical) - first.at;
    return seconds < MIN_SECONDS ? null : (last.current - first.current) / seconds;
  }

  /**
   * Return the seconds left: counts down like a clock and approaches each new estimate gradually.
   * Null while the rate is not known.
   *
   * @param {number} at
   * @param {number} left units
   */
  secondsLeft(at, left) {
    const rate = this.rate(at);
    if (!rate) return null;
    const estimate = left / rate;
    const before = this.#shown;
    let seconds = estimate;
    if (before && Math.abs(before.seconds - estimate) < Math.max(MIN_JUMP_SECONDS, estimate)) {
      const passed = at - before.at;
      const counted = Math.max(0, before.seconds - passed);
      seconds = counted + (estimate - counted) * Math.min(1, passed / EASING_SECONDS);
    }
    this.#shown = { at, seconds };
    return seconds;
  }
}
