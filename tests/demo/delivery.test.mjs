import assert from "node:assert/strict";
import test from "node:test";

import { DeliveryCount } from "../../semantik_realtime/demo/static/delivery-count.js";

const events = (...offsets) => offsets.map((offset) => ({ offset }));
const snapshot = (offset, reason = "new", list = []) =>
  ({ op: "sync", topic: "job:1", mode: "snapshot", reason, offset, events: list });
const replay = (prev, offset, list) =>
  ({ op: "sync", topic: "job:1", mode: "replay", prev, offset, events: list });
const batch = (prev, offset, list, conflated) =>
  ({ op: "events", topics: { "job:1": { prev, offset, events: list, conflated } } });

function count(...frames) {
  const made = new DeliveryCount();
  for (const frame of frames) made.read(frame);
  const { sent, received, merged, lost, doubled } = made;
  return { sent, received, merged, lost, doubled };
}

test("every event of a connection is counted once", () => {
  assert.deepEqual(
    count(snapshot(2, "new", events(1, 2)), batch(2, 4, events(3, 4)), batch(4, 5, events(5))),
    { sent: 5, received: 5, merged: 0, lost: 0, doubled: 0 },
  );
});

test("counting begins with the history that the page has got", () => {
  assert.deepEqual(
    count(snapshot(100, "new", events(99, 100)), batch(100, 101, events(101))),
    { sent: 3, received: 3, merged: 0, lost: 0, doubled: 0 },
  );
});

test("after a reload the replay is counted from the cursor on", () => {
  assert.deepEqual(count(replay(7, 9, events(8, 9))),
    { sent: 2, received: 2, merged: 0, lost: 0, doubled: 0 });
});

test("a gap that is closed by a replay is no loss", () => {
  const frames = [snapshot(2), batch(5, 6, events(6)), replay(2, 6, events(3, 4, 5, 6))];
  assert.deepEqual(count(...frames), { sent: 4, received: 4, merged: 0, lost: 0, doubled: 0 });
});

test("an event that is missing in a batch is lost, unless the server says that it was merged", () => {
  assert.deepEqual(count(snapshot(2), batch(2, 5, events(3, 5))),
    { sent: 3, received: 2, merged: 0, lost: 1, doubled: 0 });
  assert.deepEqual(count(snapshot(2), batch(2, 5, events(5), 2)),
    { sent: 3, received: 1, merged: 2, lost: 0, doubled: 0 });
});

test("an event that arrives again is doubled", () => {
  assert.deepEqual(count(snapshot(2), batch(2, 3, events(3)), batch(2, 4, events(3, 4))),
    { sent: 2, received: 2, merged: 0, lost: 0, doubled: 1 });
});

test("a snapshot in place of the missed events is counted as merged", () => {
  assert.deepEqual(count(snapshot(2), snapshot(9, "trimmed", events(8, 9))),
    { sent: 7, received: 2, merged: 5, lost: 0, doubled: 0 });
});

test("in a new log counting goes on from the sums", () => {
  const frames = [snapshot(2), batch(2, 4, events(3, 4)), snapshot(1, "epoch", events(1))];
  assert.deepEqual(count(...frames), { sent: 3, received: 3, merged: 0, lost: 0, doubled: 0 });
});

test("what the log has and the page has not yet got is sent and not received", () => {
  const made = new DeliveryCount();
  made.read(snapshot(2, "new", events(1, 2)));
  made.noteLog("job:1", 5);
  made.noteLog("job:2", 5);
  assert.equal(made.sent, 5);
  assert.equal(made.received, 2);
});

test("feeds are not counted", () => {
  assert.deepEqual(count({ ...snapshot(2), topic: "user:7" }, { ...batch(0, 1, events(1)) }).sent, 0);
});
