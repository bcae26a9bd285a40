/**
 * The state of a job as docs/protocol.md has it, whoever tells it: the log or the host's record.
 *
 * @typedef {{ status: string, attempt?: number,
 *   progress?: { current: number, total: number | null, unit?: string } | null,
 *   message?: string | null, fields?: Record<string, any>,
 *   error?: { type: string, message: string } | null,
 *   queued_at?: string, started_at?: string, ended_at?: string }} State
 */

const ENDED = new Set(["completed", "failed", "cancelled", "lost"]);
const RANK = { queued: 0, running: 1, retrying: 2 };

/** @param {State} state */
export function hasEnded(state) {
  return ENDED.has(state.status);
}

/**
 * The one of several accounts of a job that is furthest: a later attempt, an end, more progress.
 * Of equals the first.
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
  const mine = order(state);
  const theirs = order(other);
  const at = mine.findIndex((number, index) => number !== theirs[index]);
  return at >= 0 && mine[at] > theirs[at];
}

/** @param {State} state */
function order(state) {
  const rank = hasEnded(state) ? 3 : (RANK[/** @type {"queued"} */ (state.status)] ?? 0);
  // A job cancelled while it waited has ended, and never had an attempt.
  return [rank === 3 && !state.attempt ? 1 : (state.attempt ?? 0), rank, done(state)];
}

/** @param {State} state */
export function done(state) {
  return state.progress?.current ?? 0;
}

/** @param {State} state */
export function total(state) {
  return state.progress?.total ?? state.fields?.total_files ?? null;
}

/**
 * Whole percents for the bar; null: unknown. It reaches 100 only with the end of the work.
 *
 * @param {State} state
 */
export function percent(state) {
  if (state.status === "completed") return 100;
  const all = total(state);
  if (!all) return state.status === "queued" || hasEnded(state) ? 0 : null;
  return Math.min(100, Math.floor((100 * done(state)) / all));
}
