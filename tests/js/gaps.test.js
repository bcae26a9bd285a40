import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { cursorAt, event, live, settled, snapshot, Wire } from "./wire.js";

const JOB = "job:42";

let wire;
let calls;

beforeEach(async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  wire = new Wire();
  calls = [];
  wire.rt.watch(JOB, {
    history: 10,
    onChange: (view) => calls.push(["view", view.conflated]),
    onEvent: ({ offset }, { replayed }) => calls.push([offset, replayed]),
    onGap: (gap) => calls.push([gap.reason, gap.events]),
  });
  await wire.welcome();
});

afterEach(() => {
  wire.rt.close();
  mock.timers.reset();
});

function conflated(prev, count, ...events) {
  const frame = live(JOB, prev, ...events);
  frame.topics[JOB].conflated = count;
  return frame;
}

test("events that the server left out are reported before those that follow, and counted", async () => {
  wire.socket.push(snapshot(JOB, 1), conflated(1, 8, event(10)), conflated(10, 4, event(15)));
  assert.deepEqual(calls, [["conflated", 8], [10, false], ["conflated", 4], [15, false]]);
  mock.timers.tick(1000);
  assert.deepEqual(calls.at(-1), ["view", 12]);
});

test("a snapshot in place of events is reported with its reason", async () => {
  wire.socket.push(snapshot(JOB, 1, {}, { events: [event(1)] }));
  const more = { reason: "too_far", events: [event(8), event(9)] };
  wire.socket.push(snapshot(JOB, 9, {}, more));
  assert.deepEqual(calls, [[1, true], ["too_far", 6], [8, true], [9, true]]);
});

test("of a rewritten log each event is passed on once", async () => {
  wire.socket.push(snapshot(JOB, 2, {}, { events: [event(1), event(2)] }), live(JOB, 2, event(3)));
  const other = event(3, "42", { type: "log" });
  const history = [event(1), event(2), other];
  wire.socket.push(snapshot(JOB, 3, {}, { reason: "diverged", events: history }));
  // The lost event is sent again.
  wire.socket.push(live(JOB, 3, { ...event(3), offset: 4 }, event(5)));
  assert.deepEqual(calls, [
    [1, true], [2, true], [3, false], ["diverged", null], [3, true], [5, false],
  ]);
});

test("a replay of another history is not applied", async () => {
  wire.socket.push(snapshot(JOB, 12));
  await wire.reconnect();
  const cursor = cursorAt(13);
  const frame = { op: "sync", topic: JOB, mode: "replay", prev: 12, offset: 13, cursor };
  wire.socket.push({ ...frame, prev_cursor: "e1.12.0000000f", events: [event(13)] });
  await settled();
  const asked = wire.socket.ops("subscribe").map(({ topics }) => topics[JOB]);
  assert.deepEqual(asked, [cursorAt(12), cursorAt(12)]);
  wire.socket.push({ ...frame, prev_cursor: cursorAt(12), events: [event(13)] });
  assert.deepEqual(calls.filter(([what]) => what !== "view"), [[13, false]]);
});

test("tops of another history at the same offset make the client ask again", async () => {
  wire.socket.push(snapshot(JOB, 12));
  const tops = (cursor) => ({ op: "tops", topics: { [JOB]: { offset: 12, cursor } } });
  wire.socket.push(tops(cursorAt(12)));
  await settled();
  assert.equal(wire.socket.ops("subscribe").length, 1);
  wire.socket.push(tops("e1.12.0000000f"));
  await settled();
  assert.equal(wire.socket.ops("subscribe").length, 2);
});
