import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { slowBackoffSeconds } from "../../semantik_realtime/web/static/backoff.js";
import { isFinalCloseCode, isSlowCloseCode } from "../../semantik_realtime/web/static/protocol.js";
import { event, Page, pass, settled, snapshot, Wire } from "./wire.js";

const FINAL = [1009, 4400, 4401, 4403, 4408, 4420];
// 4450 is of a protocol that this client does not know.
const SLOW = [4404, 4429, 4450, 4499];
const PASSING = [1000, 1001, 1005, 1006, 1008, 1011, 1012, 4000, 4402, 4413, ...SLOW];

let wires;

beforeEach(() => {
  wires = [];
  mock.timers.enable({ apis: ["setTimeout"] });
  mock.method(Math, "random", () => 0.5);
  mock.method(console, "warn", () => {});
});

afterEach(() => {
  for (const { rt } of wires) rt.close();
  mock.timers.reset();
  mock.restoreAll();
});

/** Open a client that watches a feed, which never ends, so that it stays connected. */
function open(options) {
  wires.push(new Wire(options));
  wires.at(-1).rt.watch("user:7");
  return wires.at(-1);
}

const names = (wire) => wire.states.map(([state]) => state);

test("a close by the server is written to the console in one line, once", async () => {
  const warnings = mock.method(console, "warn", () => {});
  const wire = open();
  await wire.welcome();
  wire.socket.end(4401, "the token is not signed by this server");
  assert.deepEqual(warnings.mock.calls.map(({ arguments: texts }) => texts), [
    ["realtime: the server refuses the connection (4401): the token is not signed by this server."],
  ]);
});

test("a token for one topic is offered with the handshake, before the cookie counts", async () => {
  const offers = [];
  for (const token of ["rt-topic.a.b.c", "a.b.c"]) {
    const wire = open({ token: () => token });
    await settled();
    offers.push(wire.socket.protocol);
    await wire.welcome();
    assert.deepEqual(wire.socket.ops("auth"), [{ op: "auth", token }]);
  }
  assert.deepEqual(offers, [
    ["semantik.realtime.v1", "access_token.rt-topic.a.b.c"],
    "semantik.realtime.v1",
  ]);
});

test("http becomes ws, https becomes wss, and the subprotocol is offered", async () => {
  const urls = ["http://host/ws", "https://host/ws", "ws://host/ws"];
  const sockets = [];
  for (const url of urls) {
    const wire = open({ url });
    await settled();
    sockets.push(wire.socket);
  }
  assert.deepEqual(
    sockets.map(({ url, protocol }) => [url, protocol]),
    ["ws://host/ws", "wss://host/ws", "ws://host/ws"].map((url) => [url, "semantik.realtime.v1"]),
  );
});

test("a relative URL is resolved against the page", async () => {
  globalThis.location = new URL("https://host:8443/jobs/7?tab=1");
  try {
    const wire = open({ url: "/realtime/ws" });
    await settled();
    assert.equal(wire.socket.url, "wss://host:8443/realtime/ws");
  } finally {
    delete globalThis.location;
  }
});

test("the token is sent in the first frame and is not in the URL", async () => {
  const wire = open({ token: async () => "secret" });
  const socket = await wire.welcome();
  assert.deepEqual(socket.sent[0], { op: "auth", token: "secret" });
  assert.doesNotMatch(socket.url, /secret/);
});

test("a client without a token says so at once, and is refused before the server's deadline", async () => {
  for (const token of [undefined, () => null, async () => ""]) {
    const wire = open({ token });
    await settled();
    wire.socket.onopen({});
    assert.deepEqual([wire.socket.hasNoToken, wire.socket.ops("auth")], [true, []]);
    wire.socket.end(4401, "no credential");
    assert.deepEqual(wire.states.at(-1), ["denied", { code: 4401, reason: "no credential" }]);
  }
});

test("the connection is connecting until the welcome and then live", async () => {
  const wire = open();
  assert.equal(wire.rt.connection, "connecting");
  await settled();
  wire.socket.onopen({});
  assert.equal(wire.rt.connection, "connecting");
  await wire.welcome();
  assert.equal(wire.rt.connection, "live");
  assert.deepEqual(names(wire), ["connecting", "live"]);
});

test("every final close code ends in denied with that code, without a retry", async () => {
  for (const code of FINAL) {
    const wire = open();
    await wire.welcome();
    wire.socket.end(code);
    await pass(3600);
    assert.deepEqual(wire.states.at(-1), ["denied", { code, reason: "" }]);
    assert.equal(wire.sockets.length, 1, `after ${code}`);
  }
});

test("after every other close code the client reconnects", async () => {
  for (const code of PASSING) {
    const wire = open();
    await wire.welcome();
    wire.socket.end(code);
    assert.deepEqual(wire.states.at(-1), ["reconnecting", { code, reason: "" }]);
    await pass(30);
    assert.equal(wire.sockets.length, 2, `after ${code}`);
  }
  assert.deepEqual([...FINAL, ...PASSING].filter(isFinalCloseCode), FINAL);
});

test("where the server has no place, the client tries again after 15 to 30 seconds each time", async () => {
  for (const code of SLOW) {
    const wire = open();
    for (let tries = 1; tries < 5; tries++) {
      await settled();
      wire.socket.end(code);
      await pass(22.4);
      assert.equal(wire.sockets.length, tries, `after ${code}`);
      await pass(0.1);
      assert.equal(wire.sockets.length, tries + 1, `after ${code}`);
    }
    wire.rt.close();
  }
  assert.deepEqual([slowBackoffSeconds(0), slowBackoffSeconds(1)], [15, 30]);
  assert.deepEqual([...FINAL, ...PASSING].filter(isSlowCloseCode), SLOW);
});

test("another close code while the client reconnects is reported", async () => {
  const wire = open();
  await settled();
  for (const code of [1006, 1006, 4429, 4429, 1006]) {
    wire.socket.end(code);
    await pass(30);
  }
  const codes = wire.states.map(([state, { code }]) => [state, code]);
  assert.deepEqual(codes.slice(1), [1006, 4429, 1006].map((code) => ["reconnecting", code]));
});

test("waits grow up to a random part of 30 seconds, and retries have no end", async () => {
  const wire = open();
  await settled();
  for (const seconds of [0.25, 0.5, 1, 2, 4, 8, 15, 15, 15]) {
    const tries = wire.sockets.length;
    wire.socket.end();
    await pass(seconds - 0.01);
    assert.equal(wire.sockets.length, tries, `before ${seconds} s`);
    await pass(0.01);
    assert.equal(wire.sockets.length, tries + 1, `after ${seconds} s`);
  }
  assert.deepEqual(names(wire), ["connecting", "reconnecting"]);
});

test("only a connection that lasted 5 seconds resets the backoff", async () => {
  const wire = open();
  for (const seconds of [0.25, 0.5, 1, 2, 4, 8]) {
    await wire.welcome();
    wire.socket.end();
    await pass(seconds - 0.01);
    assert.equal(wire.socket.isClosed, true);
    await pass(0.01);
  }
  await wire.welcome();
  await pass(5);
  wire.socket.end();
  await pass(0.25);
  assert.equal(wire.socket.isClosed, false);
});

test("a handshake that hangs is given up after 15 seconds", async () => {
  const wire = open();
  await settled();
  await pass(14.9);
  assert.equal(wire.socket.isClosed, false);
  await pass(0.1);
  assert.equal(wire.sockets[0].isClosed, true);
  await pass(0.25);
  assert.equal(wire.sockets.length, 2);
});

test("a token that is pending for 15 seconds is given up, and not used when it arrives late", async () => {
  const given = [];
  const wire = open({ token: () => new Promise((...ends) => given.push(ends)) });
  await settled();
  await pass(15);
  await pass(0.25);
  await pass(15);
  await pass(0.5);
  assert.equal(given.length, 3);
  given[0][0]("late");
  given[1][1](new Error("late"));
  await settled();
  assert.equal(wire.sockets.length, 0);
  given[2][0]("timely");
  const socket = await wire.welcome();
  assert.deepEqual(socket.ops("auth"), [{ op: "auth", token: "timely" }]);
});

test("a token callback that throws leads to a retry", async () => {
  let calls = 0;
  const token = () => {
    if (++calls === 1) throw new Error("no network");
    return "jwt";
  };
  const wire = open({ token });
  await settled();
  assert.equal(wire.rt.connection, "reconnecting");
  await pass(0.25);
  await wire.welcome();
  assert.equal(wire.rt.connection, "live");
});

test("after close code 4402 the token callback is called with expired", async () => {
  const flags = [];
  const token = async ({ expired }) => (flags.push(expired), expired ? "new" : "old");
  const wire = open({ token });
  await wire.welcome();
  const socket = await wire.reconnect(4402);
  assert.deepEqual(flags, [false, true]);
  assert.deepEqual(socket.sent[0], { op: "auth", token: "new" });
  await wire.reconnect();
  assert.deepEqual(flags, [false, true, false]);
});

test("expired stays true until the server has sent welcome", async () => {
  const flags = [];
  const wire = open({ token: ({ expired }) => (flags.push(expired), "jwt") });
  await wire.welcome();
  wire.socket.end(4402);
  await pass(30);
  wire.socket.end(1006);
  await pass(30);
  assert.deepEqual(flags, [false, true, true]);
});

test("a credential may expire any number of times", async () => {
  const wire = open({ token: () => "jwt" });
  await wire.welcome();
  for (let times = 0; times < 3; times++) await wire.reconnect(4402);
  assert.equal(wire.rt.connection, "live");
});

test("a credential that is still expired after a refresh ends in denied", async () => {
  const wire = open({ token: () => "old" });
  await settled();
  wire.socket.end(4402);
  await pass(30);
  wire.socket.end(4402);
  await pass(3600);
  assert.equal(wire.sockets.length, 2);
  assert.deepEqual(wire.states.at(-1), ["denied", { code: 4402, reason: "" }]);
});

test("after bye the client reconnects after the reconnect_seconds of the frame", async () => {
  const wire = open();
  const socket = await wire.welcome();
  socket.push({ op: "bye", reconnect_seconds: 1.7 });
  assert.equal(socket.isClosed, true);
  assert.deepEqual(wire.states.at(-1), ["reconnecting", { reason: "bye" }]);
  await pass(1.69);
  assert.equal(wire.sockets.length, 1);
  await pass(0.01);
  assert.equal(wire.sockets.length, 2);
});

test("after two and a half heartbeats without a frame the client reconnects", async () => {
  const wire = open();
  const socket = await wire.welcome(4);
  for (let beat = 0; beat < 5; beat++) {
    await pass(9.9);
    socket.push({ op: "tops", topics: {} });
  }
  await pass(9.9);
  assert.equal(wire.rt.connection, "live");
  await pass(0.1);
  assert.equal(wire.rt.connection, "reconnecting");
  assert.equal(socket.isClosed, true);
  await pass(0.25);
  assert.equal(wire.sockets.length, 2);
});

test("frames and closes of a socket that was given up are ignored", async () => {
  const wire = open();
  const shown = [];
  wire.rt.watch("job:42", { onEvent: ({ offset }) => shown.push(offset) });
  const socket = await wire.welcome(4);
  socket.push(snapshot("job:42", 1));
  await pass(10);
  const late = snapshot("job:42", 2, {}, { events: [event(2)] });
  socket.onmessage({ data: JSON.stringify(late) });
  socket.onclose({ code: 4401, reason: "" });
  assert.equal(wire.rt.connection, "reconnecting");
  assert.deepEqual(shown, []);
});

test("degraded and restored change the state, and a new connection starts live", async () => {
  const wire = open();
  const socket = await wire.welcome();
  socket.push({ op: "degraded", since: "2026-11-23T08:00:00.000Z" });
  assert.deepEqual(wire.states.at(-1), ["degraded", { since: "2026-11-23T08:00:00.000Z" }]);
  socket.push({ op: "restored" });
  assert.deepEqual(wire.states.at(-1), ["live", {}]);
  socket.push({ op: "degraded", since: "2026-11-23T08:00:00.000Z" });
  await wire.reconnect();
  assert.deepEqual(names(wire).slice(-3), ["degraded", "reconnecting", "live"]);
});

test("frames that are not JSON objects are ignored", async () => {
  const wire = open();
  const socket = await wire.welcome();
  for (const data of ["{", "null", "7", "[]", '"x"', '{"op":null}']) socket.onmessage({ data });
  assert.equal(wire.rt.connection, "live");
});

test("closed is reported once, and the client does not reconnect", async () => {
  const wire = open();
  const socket = await wire.welcome();
  wire.rt.close();
  wire.rt.close();
  await pass(3600);
  assert.equal(socket.isClosed, true);
  assert.equal(wire.sockets.length, 1);
  assert.deepEqual(names(wire), ["connecting", "live", "closed"]);
});

test("a client closed while it waits for its token opens no socket", async () => {
  const wire = open({ token: async () => "jwt" });
  wire.rt.close();
  await settled();
  assert.equal(wire.sockets.length, 0);
});

test("a listener gets the current state at once, and nothing after it is removed", async () => {
  const wire = open();
  const states = [];
  const stop = wire.rt.onConnection((state) => states.push(state));
  assert.deepEqual(states, ["connecting"]);
  stop();
  await wire.welcome();
  assert.deepEqual(states, ["connecting"]);
});

test("when the network comes back or the page is shown again, the client reconnects at once", async () => {
  const page = new Page();
  try {
    for (const wakeUp of [() => page.emit("online"), () => page.turn(false)]) {
      const wire = open();
      await settled();
      for (let tries = 0; tries < 8; tries++) {
        wire.socket.end();
        await pass(15);
      }
      wire.socket.end();
      const before = wire.sockets.length;
      page.turn(true);
      await settled();
      assert.equal(wire.sockets.length, before);
      wakeUp();
      await settled();
      wakeUp();
      await settled();
      assert.equal(wire.sockets.length, before + 1);
      wire.socket.end();
      await pass(0.25);
      assert.equal(wire.sockets.length, before + 2);
      wire.rt.close();
    }
  } finally {
    page.remove();
  }
});

test("when the page is shown again, a server that does not answer a ping is given up", async () => {
  const page = new Page();
  try {
    const wire = open();
    const socket = await wire.welcome();
    page.turn(false);
    assert.deepEqual(socket.ops("ping"), [{ op: "ping" }]);
    socket.push({ op: "pong" });
    await pass(40);
    assert.equal(wire.rt.connection, "live");
    page.turn(false);
    await pass(5);
    assert.equal(wire.rt.connection, "reconnecting");
  } finally {
    page.remove();
  }
});

test("a denied client stays denied when the page is shown again", async () => {
  const page = new Page();
  try {
    const wire = open();
    await wire.welcome();
    wire.socket.end(4403);
    page.emit("online");
    page.turn(false);
    await settled();
    assert.equal(wire.sockets.length, 1);
    assert.equal(wire.rt.connection, "denied");
  } finally {
    page.remove();
  }
});

test("a closed client no longer listens to the page", async () => {
  const page = new Page();
  try {
    const { rt } = open();
    assert.ok(page.listeners > 0);
    rt.close();
    assert.equal(page.listeners, 0);
  } finally {
    page.remove();
  }
});
