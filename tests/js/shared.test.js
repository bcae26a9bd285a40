import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { asJob, isSame, jobTopic, Shared, startedId } from "../../semantik_realtime/web/static/shared.js";
import { pass, settled, snapshot as sync, Wire } from "./wire.js";

const RUNNING = { status: "running", attempt: 1 };
async function start() {
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const wire = new Wire();
  await settled();
  wire.sockets[0].welcome();
  return { wire, shared: new Shared(wire.rt), socket: wire.sockets[0] };
}

test("listeners that leave and come back within the linger share one subscription", async () => {
  const { shared, socket } = await start();
  const leave = shared.watch("job:1", 0).add({});
  leave();
  const leaveAgain = shared.watch("job:1", 0).add({});
  shared.watch("job:1", 0).add({})();
  await pass(10);
  assert.equal(socket.ops("subscribe").length, 1);
  assert.equal(socket.ops("unsubscribe").length, 0);
  leaveAgain();
  await pass(3);
  assert.equal(socket.ops("unsubscribe").length, 1);
});

test("a snapshot is the same until it changes, and is known without watching", async () => {
  const { shared, socket } = await start();
  assert.equal(shared.peek("job:1", 0), shared.peek("job:1", 0));
  assert.equal(shared.peek("job:1", 0).loading, true);
  const watched = shared.watch("job:1", 0);
  let changes = 0;
  watched.add({ onChange: () => changes++ });
  await settled();
  socket.push(sync("job:1", 1, { 1: RUNNING }));
  await pass(1);
  await watched.ready;
  const snapshot = shared.peek("job:1", 0);
  assert.equal(changes, 1);
  assert.equal(asJob(snapshot), asJob(snapshot));
  assert.equal(asJob(snapshot).status, "running");
  assert.equal(snapshot.loading, false);
});

test("a refusal is shown, and a component that is mounted later asks again", async () => {
  const { shared, socket } = await start();
  const leave = shared.watch("job:1", 0).add({});
  await settled();
  socket.push({ op: "denied", topic: "job:1", code: "forbidden", message: "no" });
  await settled();
  assert.equal(shared.peek("job:1", 0).denied?.code, "forbidden");
  leave();
  shared.watch("job:1", 0).add({});
  await settled();
  assert.equal(socket.ops("subscribe").length, 2);
});

test("a source that is a function makes its connection once, when it is needed", async () => {
  let made = 0;
  const { wire } = await start();
  const shared = new Shared(() => {
    made++;
    return wire.rt;
  });
  assert.deepEqual([made, shared.state.state], [0, "connecting"]);
  const stop = shared.onState(() => {});
  shared.watch("job:1", 0);
  assert.deepEqual([made, shared.state.state], [1, "live"]);
  stop();
});

test("the id of a started job is read from what routes answer", () => {
  assert.equal(startedId("a"), "a");
  assert.equal(startedId({ id: 7 }), "7");
  assert.equal(startedId({ id: "row", job_id: "a" }), "a");
  assert.equal(startedId({ job: "a", topic: "job:a" }), "a");
  for (const none of [undefined, null, "", {}, { id: null }]) {
    assert.throws(() => startedId(none), TypeError);
  }
});

test("equal lists and plain objects are the same, others only if they are identical", () => {
  assert.ok(isSame([1, "a"], [1, "a"]) && isSame({ a: 1 }, { a: 1 }) && isSame(NaN, NaN));
  assert.ok(!isSame([1], [2]) && !isSame({ a: 1 }, { b: 1 }) && !isSame([], {}));
  assert.ok(!isSame(new Map([[1, 1]]), new Map()) && !isSame(new Date(0), new Date(1)));
});

test("no id is no topic, and an id that no name may have is encoded", () => {
  assert.deepEqual([jobTopic(null), jobTopic(undefined), jobTopic("")], [null, null, null]);
  assert.equal(jobTopic("a/b"), "job:a~2Fb");
});
