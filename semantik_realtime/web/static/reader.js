/**
 * What one client knows of one topic, and rules R1 to R5 of docs/protocol.md.
 *
 * Values in, values out: a view is never changed, so whoever holds one may keep it.
 *
 * @typedef {import("./realtime.js").RealtimeEvent} RealtimeEvent
 * @typedef {import("./realtime.js").State} State
 * @typedef {import("./realtime.js").SnapshotReason} SnapshotReason
 *
 * @typedef {object} Known
 * @property {Map<string, State>} states
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

/** @type {Readonly<Known>} */
export const UNKNOWN = Object.freeze({
  states: new Map(),
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
 * Take in what a frame with this `op` says of one topic.
 *
 * @param {Known} view
 * @param {string} op unknown ones change nothing
 * @param {any} part
 * @returns {Step}
 */
export function read(view, op, part) {
  if (op === "sync" && part.mode === "snapshot") return restart(view, part);
  if (op === "sync" && part.mode === "replay") return advance({ ...view, synced: true }, part);
  if (op === "events" && view.synced) return advance(view, part);
  if (op === "tops" && part.offset > view.offset) return gap(view); // R4
  if (op === "gone" || op === "denied") return { view: UNKNOWN, events: [], resubscribe: false };
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
    view = {
      ...view,
      states: fold(view.states, fresh),
      offset: batch.offset,
      cursor: batch.cursor,
      last: fresh.at(-1) ?? view.last,
    };
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
  return {
    view: {
      states: new Map(Object.entries(snapshot.states ?? {})),
      offset: snapshot.offset,
      cursor: snapshot.cursor ?? null,
      reason: snapshot.reason ?? null,
      synced: true,
      last: history.at(-1) ?? view.last,
    },
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
  for (const { key, state } of events) {
    if (state === null) folded.delete(key);
    else if (state !== undefined) folded.set(key, state);
  }
  return folded;
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
