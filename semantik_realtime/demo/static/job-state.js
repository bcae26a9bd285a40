/**
 * The state of a job (docs/protocol.md), from the log or from the host's record.
 *
 * @typedef {{ status: string, attempt?: number,
 *   progress?: { current: number, total: number | null, unit?: string } | null,
 *   message?: string | null, fields?: Record<string, any>,
 *   error?: { type: string, message: string } | null,
 *   queued_at?: string, started_at?: string, ended_at?: string }} State
 */

// Not imported from the realtime client: without the plugin there is none.
const END_STATUSES = new Set(["completed", "failed", "cancelled", "lost"]);
const RANK = { queued: 0, running: 1, retrying: 2, cancelling: 2 };

/** @param {State} state */
export function hasEnded(state) {
  return END_STATUSES.has(state.status);
}

/**
 * Return the state that is furthest: by attempt, then by end, then by progress. Of equal states the
 * first.
 *
 * @param {(State | null | undefined)[]} states
 * @returns {State | null}
 */
export function furthest(states) {
  /** @type {State | null} */
  let best = null;
  for (const state of states) if (state && (!best || isFurther(state, best))) best = state;
  return best;
}

/** @param {State} state @param {State} other */
function isFurther(state, other) {
  const numbers = order(state);
  const others = order(other);
  const at = numbers.findIndex((number, index) => number !== others[index]);
  return at >= 0 && numbers[at] > others[at];
}

/** @param {State} state @returns {number[]} compared from left to right */
function order(state) {
  const rank = hasEnded(state) ? 3 : (RANK[/** @type {"queued"} */ (state.status)] ?? 0);
  // A job that is cancelled in the queue ends without an attempt. It counts as the first attempt,
  // so that its end is further than the queued state.
  return [rank === 3 && !state.attempt ? 1 : (state.attempt ?? 0), rank, done(state)];
}

/** @param {State} state @returns {number} units done */
export function done(state) {
  return state.progress?.current ?? 0;
}

/** @param {State} state @returns {number | null} units in all; null: unknown */
export function total(state) {
  return state.progress?.total ?? state.fields?.total_files ?? null;
}

/**
 * Return whole percents for the bar, or null if the total is unknown. 100 means that all is done.
 *
 * @param {State} state
 */
export function percent(state) {
  if (state.status === "completed") return 100;
  const all = total(state);
  if (!all) return state.status === "queued" || hasEnded(state) ? 0 : null;
  return Math.min(100, Math.floor((100 * done(state)) / all));
}
