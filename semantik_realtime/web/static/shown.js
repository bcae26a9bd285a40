/**
 * Which events were passed to the application, so that none is passed twice (R8 of
 * docs/protocol.md). Pure functions; a value is never changed.
 *
 * @typedef {import("./realtime.js").RealtimeEvent} RealtimeEvent
 *
 * @typedef {object} Shown
 * @property {readonly number[]} marks of the events that were passed, the newest last
 * @property {ReadonlySet<number>} lost marks of those that were passed, and that the history of the
 *   rewritten log does not have: their producer may send them again, at another offset
 */

/** As many as the longest history has. */
const MAX_MARKS = 1000;

/** @type {Readonly<Shown>} */
export const NOTHING_SHOWN = Object.freeze({ marks: [], lost: new Set() });

/**
 * Return which events of a batch are passed: all, but those that were lost and come again.
 *
 * @param {Shown} shown
 * @param {RealtimeEvent[]} events
 * @returns {[Shown, RealtimeEvent[]]}
 */
export function showBatch(shown, events) {
  if (events.length === 0) return [shown, events];
  const marks = events.map(markOf);
  if (shown.lost.size === 0) return [{ ...shown, marks: append(shown, marks) }, events];
  const lost = new Set(shown.lost);
  const fresh = events.filter((_, at) => !lost.delete(marks[at] ?? 0));
  return [{ marks: append(shown, marks), lost }, fresh];
}

/**
 * Return which events of a snapshot's history are passed: those that were not before. In the same
 * log, what comes before the first one that was passed is older than it, and is not passed after it.
 *
 * Comparing offsets would lose events: a log that begins again, and one that a failover has
 * rewritten, use them again for other events.
 *
 * @param {Shown} shown
 * @param {RealtimeEvent[]} history
 * @param {boolean} isRewritten whether the log is another one than that of the events before
 * @returns {[Shown, RealtimeEvent[]]}
 */
export function showHistory(shown, history, isRewritten) {
  const known = new Set(shown.marks);
  const marks = history.map(markOf);
  const first = isRewritten ? -1 : marks.findIndex((mark) => known.has(mark));
  const isFresh = (/** @type {number} */ at) => at > first && !known.has(marks[at] ?? 0);
  const there = new Set(marks);
  const lost = isRewritten ? new Set(shown.marks.filter((mark) => !there.has(mark))) : shown.lost;
  const added = marks.filter((_, at) => isFresh(at));
  return [{ marks: append(shown, added), lost }, history.filter((_, at) => isFresh(at))];
}

/**
 * @param {Shown} shown
 * @param {number[]} marks
 */
function append(shown, marks) {
  return [...shown.marks, ...marks].slice(-MAX_MARKS);
}

/**
 * Return a hash of 53 bits of an event without its offset.
 *
 * @param {RealtimeEvent} event
 */
function markOf({ offset: _, ...rest }) {
  const text = JSON.stringify(rest);
  let [high, low] = [0xdeadbeef, 0x41c6ce57];
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at);
    high = Math.imul(high ^ code, 0x9e3779b1);
    low = Math.imul(low ^ code, 0x5f356495);
  }
  high = Math.imul(high ^ (high >>> 16), 0x85ebca6b) ^ (low >>> 13);
  low = Math.imul(low ^ (low >>> 16), 0xc2b2ae35) ^ (high >>> 13);
  return (high & 0x1fffff) * 0x100000000 + (low >>> 0);
}
