const WINDOW_SECONDS = 12;
const MIN_SECONDS = 0.8;

/**
 * How fast a job goes, and how long it still takes.
 *
 * The rate is that of the last seconds, measured up to now, so that it sinks while nothing comes.
 * All times are seconds of one clock, given by the caller.
 */
export class Pace {
  /** @type {{ at: number, current: number }[]} oldest first */
  #samples = [];
  /** @type {{ at: number, seconds: number } | null} what was shown last */
  #shown = null;

  /** @param {number} at when the job had done nothing yet */
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

  /** @param {number} at @param {number} current */
  add(at, current) {
    const last = this.#samples.at(-1);
    if (last && current === last.current) return;
    // Fewer than before: a new attempt, and when it began is not known.
    if (last && current < last.current) this.#restart([]);
    this.#samples.push({ at, current });
    while (this.#samples.length > 2 && this.#samples[1].at < at - WINDOW_SECONDS) {
      this.#samples.shift();
    }
  }

  /**
   * Units a second, or null while it is too early to tell.
   *
   * @param {number} at
   */
  rate(at) {
    const first = this.#samples[0];
    const last = this.#samples.at(-1);
    if (!first || !last || last.current === first.current) return null;
    // Right after a unit is done the next one has not been waited for: then up to it, not to now.
    const typical = (last.at - first.at) / (last.current - first.current);
    const seconds = Math.max(last.at, at - typical) - first.at;
    return seconds < MIN_SECONDS ? null : (last.current - first.current) / seconds;
  }

  /**
   * Seconds left, eased: it counts down like a clock and bends towards each new estimate.
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
    if (before && Math.abs(before.seconds - estimate) < Math.max(5, estimate)) {
      const passed = at - before.at;
      const counted = Math.max(0, before.seconds - passed);
      seconds = counted + (estimate - counted) * Math.min(1, passed / 3);
    }
    this.#shown = { at, seconds };
    return seconds;
  }
}

/** @param {number} rate units a second @param {string} unit */
export function rateText(rate, unit) {
  if (rate >= 10) return `${Math.round(rate).toLocaleString("en")} ${unit}/s`;
  if (rate >= 1) return `${rate.toFixed(1)} ${unit}/s`;
  return `${(rate * 60).toFixed(rate * 60 < 10 ? 1 : 0)} ${unit}/min`;
}

/** @param {number} seconds */
export function leftText(seconds) {
  if (seconds < 1.5) return "almost done";
  if (seconds < 20) return `${Math.round(seconds)} s left`;
  if (seconds < 90) return `${Math.round(seconds / 5) * 5} s left`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min left`;
  return `${(seconds / 3600).toFixed(1)} h left`;
}

/** @param {number} seconds */
export function durationText(seconds) {
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
