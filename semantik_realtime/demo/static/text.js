/** Numbers, times and errors as text for people. */

/** @param {number} count @param {string} one @param {string} [many] */
export function plural(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

/**
 * @param {string} reason of a gap in the events of a page
 * @param {number | null} events how many there are
 */
export function gapText(reason, events) {
  if (reason === "conflated") {
    return `${plural(events ?? 0, "event")} left out: this page reads too slowly.`;
  }
  if (reason === "trimmed" || reason === "too_far") {
    return `${plural(events ?? 0, "event")} summed up: this page was away for too long.`;
  }
  return "The log was lost, and goes on from an earlier state.";
}

/** @param {number} bytes */
export function sizeText(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(bytes < 1e4 ? 1 : 0)} kB`;
  return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
}

/** @param {string} time RFC 3339; the text is in the time zone of the browser */
export function clockText(time) {
  return new Date(time).toLocaleTimeString("en-GB");
}

/** @param {number} seconds */
export function agoText(seconds) {
  if (seconds < 45) return "just now";
  if (seconds < 3600) return `${Math.max(1, Math.round(seconds / 60))} min ago`;
  if (seconds < 86400) return `${Math.round(seconds / 3600)} h ago`;
  return plural(Math.round(seconds / 86400), "day") + " ago";
}

/** @param {number} seconds */
export function durationText(seconds) {
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
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
export function silenceText(seconds) {
  return `no news for ${seconds < 60 ? `${Math.floor(seconds)} s` : durationText(seconds)}`;
}

/** @param {number} rate units per second @param {string} unit */
export function rateText(rate, unit) {
  if (rate >= 10) return `${Math.round(rate).toLocaleString("en")} ${unit}/s`;
  if (rate >= 1) return `${rate.toFixed(1)} ${unit}/s`;
  return `${(rate * 60).toFixed(rate * 60 < 10 ? 1 : 0)} ${unit}/min`;
}

/** @param {any} error @returns {string} its message as a sentence */
export function errorText(error) {
  const text = String(error?.message ?? error);
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

const KEPT = "What it had indexed is kept; “Index the rest” goes on from there.";

/**
 * Return why a job failed, as a text for people; empty if it did not fail.
 *
 * @param {{ status?: string, started_at?: string, error?: { type?: string, message?: string } | null }} state
 */
export function failureText({ status, started_at, error }) {
  if (status === "cancelled") return "";
  // The error of a job that no worker has begun says so.
  if (status === "lost" && (started_at || !error)) return `The worker that ran this job is gone. ${KEPT}`;
  // Celery's error after the death of the process that ran the task.
  if (error?.type === "WorkerLostError") return `The process that ran this job was killed. ${KEPT}`;
  return error ? [error.type, error.message].filter(Boolean).join(": ") : "";
}

/** @param {Record<string, any>} data of an event `log` (docs/protocol.md) */
export function recordText({ level, text, exception, dropped }) {
  const error = exception ? ` ${exception.type}: ${exception.message}` : "";
  return `${level}: ${text}${error}${dropped ? ` (${dropped} more were left out)` : ""}`;
}
