import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { pass, settled, Wire } from "./wire.js";

let lines;
let wires;

beforeEach(() => {
  [lines, wires] = [[], []];
  mock.timers.enable({ apis: ["setTimeout"] });
  mock.method(console, "warn", (...texts) => lines.push(texts.join(" ")));
});

afterEach(() => {
  for (const { rt } of wires) rt.close();
  delete globalThis.location;
  mock.timers.reset();
  mock.restoreAll();
});

/** Open a client on a page of this host that watches a job. */
async function open(host, options) {
  globalThis.location = new URL(`http://${host}/`);
  wires.push(new Wire(options));
  wires.at(-1).rt.watch("job:42");
  await settled();
  return wires.at(-1);
}

const DEVELOPMENT = ["localhost:8000", "127.0.0.1:8000", "127.8.8.8", "[::1]:8000", "app.localhost"];

test("a missing credential is one line that names what to set, where the page is developed", async () => {
  for (const host of DEVELOPMENT) {
    lines = [];
    const wire = await open(host);
    wire.socket.end(4401, "no credential");
    assert.equal(lines.length, 1, host);
    for (const name of ["4401", "no credential", "connect({ token })", "DISABLE_AUTH=1"]) {
      assert.ok(lines[0].includes(name), lines[0]);
    }
  }
  lines = [];
  const wire = await open("localhost", { token: () => "wrong" });
  wire.socket.end(4401, "the signature is wrong");
  assert.match(lines[0], /SEMANTIK_REALTIME_JWT_SECRET/);
});

test("the server's sentence about an Origin that is not allowed is written as it is", async () => {
  const wire = await open("localhost");
  wire.socket.end(4403, "Origin http://x is not allowed (SEMANTIK_REALTIME_ALLOWED_ORIGINS)");
  assert.deepEqual(lines, [
    "realtime: the server refuses the connection (4403): Origin http://x is not allowed (SEMANTIK_REALTIME_ALLOWED_ORIGINS).",
  ]);
});

test("a denied topic names the owner and the rule, once for each kind of topic", async () => {
  const wire = await open("localhost");
  for (const topic of ["job:43", "user:8", "collection:9"]) wire.rt.watch(topic);
  const socket = await wire.welcome();
  const denied = { op: "denied", code: "forbidden", message: "no" };
  for (const topic of ["job:42", "job:43", "user:8", "collection:9"]) socket.push({ ...denied, topic });
  assert.equal(lines.length, 3);
  assert.match(lines[0], /job:42 .*realtime_owner.*authorize/);
  assert.match(lines[1], /user:8 .*its user alone/);
  assert.match(lines[2], /collection:9/);
});

test("a server that is not there, or has no place, is one line however often it is tried", async () => {
  const wire = await open("localhost");
  for (let tries = 0; tries < 4; tries++) {
    wire.socket.end();
    await pass(30);
  }
  assert.equal(lines.length, 1);
  assert.match(lines[0], /ws:\/\/host\/ws .*1006.*Realtime.*websockets/);
  for (let tries = 0; tries < 4; tries++) {
    wire.socket.end(4429, "too many connections of this user");
    await pass(30);
  }
  assert.equal(lines.length, 2);
  assert.match(lines[1], /4429 too many connections of this user/);
});

test("a source of tokens that hangs or fails is named", async () => {
  const sources = [() => new Promise(() => {}), () => Promise.reject(new Error("no session"))];
  const texts = [/`token` has returned nothing yet/, /Error: no session/];
  for (const [index, token] of sources.entries()) {
    lines = [];
    await open("localhost", { token });
    await pass(15);
    assert.equal(lines.length, 1);
    assert.match(lines[0], texts[index]);
  }
});

test("elsewhere only the refusal of the whole connection is written, without advice", async () => {
  const wire = await open("app.example");
  wire.socket.end();
  await pass(30);
  wire.socket.end(4429, "too many");
  await pass(30);
  const socket = await wire.welcome();
  socket.push({ op: "denied", topic: "job:42", code: "forbidden", message: "no" });
  assert.deepEqual(lines, []);
  wire.rt.watch("user:7");
  socket.end(4401, "the token has expired");
  assert.deepEqual(lines, [
    "realtime: the server refuses the connection (4401): the token has expired.",
  ]);
});

test("a mistake of the page is written once", async () => {
  const wire = await open("app.example");
  const socket = await wire.welcome();
  const error = { op: "error", code: "bad_topic", message: "not a topic" };
  socket.push(error, error, { ...error, code: "bad_frame" });
  assert.equal(lines.length, 2);
});
