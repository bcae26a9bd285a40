/**
 * What one client knows of one topic: rules R1 to R6 and R8 of docs/protocol.md, as pure functions.
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
 * @property {number} conflated how many events the server has left out, because this client was slow
 * @property {import("./shown.js").Shown} shown the events returned in steps
 *
 * @typedef {object} Step
 * @property {ReaderView} view
 * @property {{ event: RealtimeEvent, replayed: boolean }[]} events to show, in order
 * @property {Gap | null} gap events that are in the states, and in no step
 * @property {boolean} resubscribe whether to subscribe again with the cursor of the view
 *
 * @typedef {import("./realtime.js").Gap} Gap
 */

import { hasEnded } from "./protocol.js";
import { NOTHING_SHOWN, showBatch, showHistory } from "./shown.js";

/** Reasons of a snapshot of another log than that of the client's cursor. */
const OTHER_LOG = new Set(["epoch", "diverged", "ahead", "recalled"]);

/** @type {Readonly<ReaderView>} */
export const EMPTY_VIEW = Object.freeze({
  states: new Map(),
  overlay: new Map(),
  offset: 0,
  cursor: null,
  reason: null,
  synced: false,
  conflated: 0,
  shown: NOTHING_SHOWN,
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
  if (op === "tops" && isBehind(view, part)) return resubscribe(view);
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
  return { view, events: [], gap: null, resubscribe: false };
}

/**
 * @param {ReaderView} view
 * @returns {Step}
 */
function resubscribe(view) {
  return { view: { ...view, synced: false }, events: [], gap: null, resubscribe: true };
}

/**
 * R4: events are missing, or the position is in another history.
 *
 * @param {ReaderView} view
 * @param {{ offset: number, cursor: string }} top
 */
function isBehind(view, { offset, cursor }) {
  return offset > view.offset || (view.synced && offset === view.offset && cursor !== view.cursor);
}

/**
 * R2. R5 follows from it: a conflated batch has the `prev` of the events that it replaces.
 *
 * @param {ReaderView} view
 * @param {{ prev: number, prev_cursor?: string, offset: number, cursor: string,
 *   events?: RealtimeEvent[], conflated?: number }} batch
 * @returns {Step}
 */
function applyBatch(view, batch) {
  if (batch.prev > view.offset || isOfOtherHistory(view, batch)) return resubscribe(view);
  if (batch.offset <= view.offset) return withoutEvents(view);
  const fresh = (batch.events ?? []).filter((event) => event.offset > view.offset);
  const { states, changed } = fold(view.states, fresh);
  const [shown, events] = showBatch(view.shown, fresh);
  const { offset, cursor, conflated = 0 } = batch;
  const next = { ...view, states, offset, cursor, shown, conflated: view.conflated + conflated };
  return {
    view: dropOverlayOf(next, changed),
    events: events.map((event) => ({ event, replayed: false })),
    gap: conflated ? { reason: "conflated", events: conflated } : null,
    resubscribe: false,
  };
}

/**
 * R2: a batch that names the cursor before it continues the history of the view only from there.
 *
 * @param {ReaderView} view
 * @param {{ prev_cursor?: string, cursor: string }} batch
 */
function isOfOtherHistory(view, batch) {
  if (batch.prev_cursor === undefined || view.cursor === null) return false;
  return batch.prev_cursor !== view.cursor && batch.cursor !== view.cursor;
}

/**
 * R3.
 *
 * @param {ReaderView} view
 * @param {any} snapshot
 * @returns {Step}
 */
function applySnapshot(view, snapshot) {
  const isRewritten = OTHER_LOG.has(snapshot.reason);
  const [shown, history] = showHistory(view.shown, snapshot.events ?? [], isRewritten);
  const next = {
    states: new Map(Object.entries(snapshot.states ?? {})),
    overlay: view.overlay,
    offset: snapshot.offset,
    cursor: snapshot.cursor ?? null,
    reason: snapshot.reason ?? null,
    synced: true,
    conflated: view.conflated,
    shown,
  };
  return {
    view: dropOverlay(next),
    events: history.map((event) => ({ event, replayed: true })),
    gap: gapBefore(view, snapshot, isRewritten),
    resubscribe: false,
  };
}

/**
 * Return what a snapshot has in its states only; null: a client without a cursor misses nothing.
 *
 * @param {ReaderView} view
 * @param {any} snapshot
 * @param {boolean} isRewritten
 * @returns {Gap | null}
 */
function gapBefore(view, { reason, offset, events = [] }, isRewritten) {
  if (view.cursor === null) return null;
  if (isRewritten) return { reason, events: null };
  const arrived = events.filter((/** @type {RealtimeEvent} */ each) => each.offset > view.offset);
  const missing = offset - view.offset - arrived.length;
  return missing > 0 ? { reason, events: missing } : null;
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
