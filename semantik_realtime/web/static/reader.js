/**
 * What one client knows of one topic: rules R1 to R6 of docs/protocol.md, as pure functions.
 *
 * A view is never changed; a change returns a new one. So callers may keep any view.
 *
 * @typedef {import("./realtime.js").RealtimeEvent} RealtimeEvent
 * @typedef {import("./realtime.js").State} State
 * @typedef {import("./realtime.js").SnapshotReason} SnapshotReason
 *
 * @typedef {object} ReaderView
 * @property {Map<string, State>} states the folded ones, at the cursor
 * @property {Map<string, State>} overlay provisional ones, shown in place of the folded ones
 * @property {number} offset
 * @property {string | null} cursor
 * @property {SnapshotReason | null} reason of the last snapshot
 * @property {boolean} synced false before the first sync of a connection, and from a gap until the
 *   sync that closes it; batches in between are ignored, so that a gap causes one resubscribe
 * @property {RealtimeEvent | null} last the newest event returned in a step
 *
 * @typedef {object} Step
 * @property {ReaderView} view
 * @property {{ event: RealtimeEvent, replayed: boolean }[]} events to show, in order
 * @property {boolean} resubscribe whether to subscribe again with the cursor of the view
 */

import { hasEnded } from "./protocol.js";

/** @type {Readonly<ReaderView>} */
export const EMPTY_VIEW = Object.freeze({
  states: new Map(),
  overlay: new Map(),
  offset: 0,
  cursor: null,
  reason: null,
  synced: false,
  last: null,
});

/**
 * Return the topics in a server frame, each with its part of the frame.
 *
 * @param {any} frame
 * @returns {[string, any][]}
 */
export function partsByTopic(frame) {
  if (frame.op === "events" || frame.op === "tops") return Object.entries(frame.topics ?? {});
  return typeof frame.topic === "string" ? [[frame.topic, frame]] : [];
}

/**
 * Return the state to show for each key: that of the overlay if there is one, else the folded one
 * (R6).
 *
 * @param {ReaderView} view
 * @returns {Map<string, State>}
 */
export function shownStates({ states, overlay }) {
  return overlay.size ? new Map([...states, ...overlay]) : states;
}

/**
 * Return true if the server no longer knows the topic, or no longer its owner.
 *
 * @param {string} op of the frame
 * @param {any} part
 */
export function isUnknown(op, part) {
  if (op === "denied") return true;
  const isSnapshot = op === "sync" && part.mode === "snapshot";
  return isSnapshot && !part.cursor && Object.keys(part.states ?? {}).length === 0;
}

/**
 * Apply the part of a server frame that concerns one topic.
 *
 * @param {ReaderView} view
 * @param {string} op of the frame; an unknown one changes nothing; `restored` concerns every topic
 * @param {any} part
 * @returns {Step}
 */
export function applyPart(view, op, part) {
  if (op === "sync" && part.mode === "snapshot") return applySnapshot(view, part);
  if (op === "sync" && part.mode === "replay") {
    const step = applyBatch({ ...view, synced: true }, part);
    return { ...step, view: dropOverlay(step.view) };
  }
  if (op === "events" && view.synced) return applyBatch(view, part);
  if (op === "tops" && part.offset > view.offset) return resubscribe(view); // R4
  if (op === "provisional") return withoutEvents(addToOverlay(view, part.states ?? {}));
  if (op === "restored") return withoutEvents(dropOverlay(view));
  if (op === "gone" || op === "denied") return withoutEvents(EMPTY_VIEW);
  return withoutEvents(view);
}

/**
 * @param {ReaderView} view
 * @returns {Step}
 */
function withoutEvents(view) {
  return { view, events: [], resubscribe: false };
}

/**
 * @param {ReaderView} view
 * @returns {Step}
 */
function resubscribe(view) {
  return { view: { ...view, synced: false }, events: [], resubscribe: true };
}

/**
 * R2. R5 follows from it: a conflated batch has the `prev` of the events that it replaces.
 *
 * @param {ReaderView} view
 * @param {{ prev: number, offset: number, cursor: string, events?: RealtimeEvent[] }} batch
 * @returns {Step}
 */
function applyBatch(view, batch) {
  if (batch.prev > view.offset) return resubscribe(view);
  const fresh = (batch.events ?? []).filter((event) => event.offset > view.offset);
  if (batch.offset > view.offset) {
    const { states, changed } = fold(view.states, fresh);
    const last = fresh.at(-1) ?? view.last;
    const next = { ...view, states, offset: batch.offset, cursor: batch.cursor, last };
    view = dropOverlayOf(next, changed);
  }
  return { view, events: fresh.map((event) => ({ event, replayed: false })), resubscribe: false };
}

/**
 * R3.
 *
 * @param {ReaderView} view
 * @param {any} snapshot
 * @returns {Step}
 */
function applySnapshot(view, snapshot) {
  const history = eventsAfter(view.last, snapshot.events ?? []);
  const next = {
    states: new Map(Object.entries(snapshot.states ?? {})),
    overlay: view.overlay,
    offset: snapshot.offset,
    cursor: snapshot.cursor ?? null,
    reason: snapshot.reason ?? null,
    synced: true,
    last: history.at(-1) ?? view.last,
  };
  return {
    view: dropOverlay(next),
    events: history.map((event) => ({ event, replayed: true })),
    resubscribe: false,
  };
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
 * R6: add the provisional states that are not behind the shown ones. No key moves back.
 *
 * @param {ReaderView} view
 * @param {Record<string, State>} states
 * @returns {ReaderView}
 */
function addToOverlay(view, states) {
  const shown = shownStates(view);
  const added = Object.entries(states).filter(([key, state]) => {
    const before = shown.get(key);
    if (!before || isAhead(state, before)) return true;
    return !isAhead(before, state) && !hasEnded(before);
  });
  return added.length ? { ...view, overlay: new Map([...view.overlay, ...added]) } : view;
}

/**
 * R6: drop the overlay, except for keys whose log is still behind it, and for topics that wait for
 * a sync.
 *
 * @param {ReaderView} view
 * @returns {ReaderView}
 */
function dropOverlay(view) {
  return view.synced ? dropOverlayOf(view, view.overlay.keys()) : view;
}

/**
 * R6: drop the overlay of these keys, except where the log is still behind it.
 *
 * @param {ReaderView} view
 * @param {Iterable<string>} keys
 * @returns {ReaderView}
 */
function dropOverlayOf(view, keys) {
  const overlay = new Map(view.overlay);
  for (const key of keys) {
    const [provisional, folded] = [overlay.get(key), view.states.get(key)];
    const isBehind = folded && provisional && !hasEnded(folded) && isAhead(provisional, folded);
    if (!isBehind) overlay.delete(key);
  }
  return overlay.size < view.overlay.size ? { ...view, overlay } : view;
}

/**
 * Return true if one state of a job is further than another (R6).
 *
 * @param {State} state
 * @param {State} other
 */
function isAhead(state, other) {
  const [attempt, otherAttempt] = [number(state.attempt), number(other.attempt)];
  // Whatever is not a number is NaN here, which is neither higher nor lower than anything.
  if (attempt > otherAttempt || attempt < otherAttempt) return attempt > otherAttempt;
  if (hasEnded(state) || hasEnded(other)) return !hasEnded(other);
  return number(state.progress?.current) > number(other.progress?.current);
}

/** @param {unknown} value */
function number(value) {
  return typeof value === "number" ? value : NaN;
}

/**
 * Return the part of a history that follows `last`, or the whole of it if `last` is not in it.
 *
 * Comparing offsets alone would lose events: a new epoch, and a log rewritten by a failover, use
 * the same offsets again for other events.
 *
 * @param {RealtimeEvent | null} last
 * @param {RealtimeEvent[]} history
 */
function eventsAfter(last, history) {
  const at = history.findIndex(
    ({ offset, type, time, key }) =>
      last?.offset === offset && last.type === type && last.time === time && last.key === key,
  );
  return history.slice(at + 1);
}
