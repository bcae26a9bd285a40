/**
 * What one client knows of one topic, and rules R1 to R6 of docs/protocol.md.
 *
 * Values in, values out: a view is never changed, so whoever holds one may keep it.
 *
 * @typedef {import("./realtime.js").RealtimeEvent} RealtimeEvent
 * @typedef {import("./realtime.js").State} State
 * @typedef {import("./realtime.js").SnapshotReason} SnapshotReason
 *
 * @typedef {object} Known
 * @property {Map<string, State>} states the folded ones, those at the cursor
 * @property {Map<string, State>} overlay provisional ones, shown in place of the folded ones
 * @property {number} offset
 * @property {string | null} cursor
 * @property {SnapshotReason | null} reason of the last snapshot
 * @property {boolean} synced false before the first sync of a connection, and from a gap to the
 *   sync that closes it; batches that come meanwhile are ignored, so a gap is asked for once
 * @property {RealtimeEvent | null} last the event shown last
 *
 * @typedef {object} Step
 * @property {Known} view
 * @property {{ event: RealtimeEvent, replayed: boolean }[]} events to show, in order
 * @property {boolean} resubscribe with the cursor of the view
 */

/** The status of an attempt that is over. */
const ENDED = new Set(["completed", "failed", "cancelled", "lost"]);

/** @type {Readonly<Known>} */
export const UNKNOWN = Object.freeze({
  states: new Map(),
  overlay: new Map(),
  offset: 0,
  cursor: null,
  reason: null,
  synced: false,
  last: null,
});

/**
 * The topics a server frame speaks of, each with what it says of it.
 *
 * @param {any} frame
 * @returns {[string, any][]}
 */
export function parts(frame) {
  if (frame.op === "events" || frame.op === "tops") return Object.entries(frame.topics ?? {});
  return typeof frame.topic === "string" ? [[frame.topic, frame]] : [];
}

/**
 * What is to be shown of each key: the overlay's state if there is one, else the folded one (R6).
 *
 * @param {Known} view
 * @returns {Map<string, State>}
 */
export function shown({ states, overlay }) {
  return overlay.size ? new Map([...states, ...overlay]) : states;
}

/**
 * Take in what a frame with this `op` says of one topic.
 *
 * @param {Known} view
 * @param {string} op unknown ones change nothing; `restored` speaks of every topic
 * @param {any} part
 * @returns {Step}
 */
export function read(view, op, part) {
  if (op === "sync" && part.mode === "snapshot") return restart(view, part);
  if (op === "sync" && part.mode === "replay") {
    const step = advance({ ...view, synced: true }, part);
    return { ...step, view: restored(step.view) };
  }
  if (op === "events" && view.synced) return advance(view, part);
  if (op === "tops" && part.offset > view.offset) return gap(view); // R4
  if (op === "provisional") return still(lay(view, part.states ?? {}));
  if (op === "restored") return still(restored(view));
  if (op === "gone" || op === "denied") return still(UNKNOWN);
  return still(view);
}

/**
 * A step without events.
 *
 * @param {Known} view
 * @returns {Step}
 */
function still(view) {
  return { view, events: [], resubscribe: false };
}

/**
 * R2, and with it R5: a conflated batch keeps the `prev` of what it stands for.
 *
 * @param {Known} view
 * @param {{ prev: number, offset: number, cursor: string, events?: RealtimeEvent[] }} batch
 * @returns {Step}
 */
function advance(view, batch) {
  if (batch.prev > view.offset) return gap(view);
  const fresh = (batch.events ?? []).filter((event) => event.offset > view.offset);
  if (batch.offset > view.offset) {
    const { states, changed } = fold(view.states, fresh);
    const last = fresh.at(-1) ?? view.last;
    view = lift({ ...view, states, offset: batch.offset, cursor: batch.cursor, last }, changed);
  }
  return { view, events: fresh.map((event) => ({ event, replayed: false })), resubscribe: false };
}

/**
 * R3.
 *
 * @param {Known} view
 * @param {any} snapshot
 * @returns {Step}
 */
function restart(view, snapshot) {
  const history = unseen(view.last, snapshot.events ?? []);
  const fresh = {
    states: new Map(Object.entries(snapshot.states ?? {})),
    overlay: view.overlay,
    offset: snapshot.offset,
    cursor: snapshot.cursor ?? null,
    reason: snapshot.reason ?? null,
    synced: true,
    last: history.at(-1) ?? view.last,
  };
  return {
    view: restored(fresh),
    events: history.map((event) => ({ event, replayed: true })),
    resubscribe: false,
  };
}

/**
 * @param {Known} view
 * @returns {Step}
 */
function gap(view) {
  return { view: { ...view, synced: false }, events: [], resubscribe: true };
}

/**
 * R1.
 *
 * @param {Map<string, State>} states
 * @param {RealtimeEvent[]} events
 */
function fold(states, events) {
  const folded = new Map(states);
  const changed = new Set();
  for (const { key, state } of events) {
    if (state === undefined) continue;
    changed.add(key);
    if (state === null) folded.delete(key);
    else folded.set(key, state);
  }
  return { states: folded, changed };
}

/**
 * R6: lay provisional states over the folded ones. No key moves back.
 *
 * @param {Known} view
 * @param {Record<string, State>} states
 * @returns {Known}
 */
function lay(view, states) {
  const before = shown(view);
  const taken = Object.entries(states).filter(([key, state]) => {
    const there = before.get(key);
    if (!there || isAhead(state, there)) return true;
    return !isAhead(there, state) && !hasEnded(there);
  });
  return taken.length ? { ...view, overlay: new Map([...view.overlay, ...taken]) } : view;
}

/**
 * R6: drop the overlay, but where the log is yet to catch up or to answer.
 *
 * @param {Known} view
 * @returns {Known}
 */
function restored(view) {
  return view.synced ? lift(view, view.overlay.keys()) : view;
}

/**
 * R6: drop the overlay of these keys, but where the log is yet to catch up.
 *
 * @param {Known} view
 * @param {Iterable<string>} keys
 * @returns {Known}
 */
function lift(view, keys) {
  const overlay = new Map(view.overlay);
  for (const key of keys) {
    const [laid, folded] = [overlay.get(key), view.states.get(key)];
    if (laid && !(folded && !hasEnded(folded) && isAhead(laid, folded))) overlay.delete(key);
  }
  return overlay.size < view.overlay.size ? { ...view, overlay } : view;
}

/**
 * Whether one account of a job is further than another (R6).
 *
 * @param {State} state
 * @param {State} other
 */
function isAhead(state, other) {
  const [mine, theirs] = [number(state.attempt), number(other.attempt)];
  // What is no number is NaN, and neither higher nor lower than anything.
  if (mine > theirs || mine < theirs) return mine > theirs;
  if (hasEnded(state) || hasEnded(other)) return !hasEnded(other);
  return number(state.progress?.current) > number(other.progress?.current);
}

/** @param {State} state */
function hasEnded({ status }) {
  return ENDED.has(status ?? "");
}

/** @param {unknown} value */
function number(value) {
  return typeof value === "number" ? value : NaN;
}

/**
 * The part of a history that comes after the event shown last.
 *
 * An offset alone does not tell: a new epoch, and a log rewritten by a failover, give it out
 * again. So it must be that very event; if it is not there, all of the history is new.
 *
 * @param {RealtimeEvent | null} last
 * @param {RealtimeEvent[]} history
 */
function unseen(last, history) {
  const at = history.findIndex(
    ({ offset, type, time, key }) =>
      last?.offset === offset && last.type === type && last.time === time && last.key === key,
  );
  return history.slice(at + 1);
}
