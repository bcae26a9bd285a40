import assert from "node:assert/strict";
import { afterEach, mock, test } from "node:test";

import { Commands } from "../../semantik_realtime/web/static/commands.js";
import { Wire } from "./wire.js";

const ADDRESS = "wss://app.example/api/realtime/ws";

afterEach(() => mock.restoreAll());

/** Answer each request with the next of `answers`: a status and a body. */
function serve(...answers) {
  const requests = [];
  mock.method(globalThis, "fetch", async (url, options) => {
    requests.push({ url, ...options });
    const [status, body] = answers.shift();
    return new Response(body === null ? "no JSON" : JSON.stringify(body), { status });
  });
  return requests;
}

test("a job is cancelled beside the socket, with the token of the connection", async () => {
  const cancelling = { topic: "job:import~3A42", status: "cancelling" };
  const requests = serve([202, cancelling]);
  const commands = new Commands(ADDRESS, async () => "jwt");
  assert.deepEqual(await commands.send("job:import:42", "cancel"), cancelling);
  assert.deepEqual(requests, [
    {
      url: "https://app.example/api/realtime/jobs/import~3A42/cancel",
      method: "POST",
      headers: { Authorization: "Bearer jwt" },
      credentials: "same-origin",
    },
  ]);
});

test("without a token the browser sends its cookie", async () => {
  const requests = serve([202, { job: "43", topic: "job:43" }]);
  await new Commands(ADDRESS).send("job:42", "retry");
  assert.deepEqual([requests[0].headers, requests[0].credentials], [{}, "include"]);
});

test("a token that has expired is replaced once", async () => {
  const asked = [];
  const requests = serve([401, { code: "expired" }], [401, { code: "expired", message: "again" }]);
  const commands = new Commands(ADDRESS, ({ expired }) => {
    asked.push(expired);
    return `${expired}`;
  });
  await assert.rejects(commands.send("job:42", "cancel"), { code: "expired", message: "again" });
  assert.deepEqual(asked, [false, true]);
  assert.equal(requests[1].headers.Authorization, "Bearer true");
});

test("a refusal has the server's code and sentence, or says so", async () => {
  serve([409, { code: "ended", message: "the job has ended: failed" }], [502, null]);
  const commands = new Commands(ADDRESS);
  await assert.rejects(commands.send("job:42", "cancel"), {
    code: "ended",
    status: 409,
    message: "the job has ended: failed",
  });
  await assert.rejects(commands.send("job:42", "cancel"), { code: "http_error", status: 502 });
});

test("only a job can be cancelled", async () => {
  const requests = serve();
  for (const asked of ["user:7", "42", "job:"]) {
    await assert.rejects(new Commands(ADDRESS).send(asked, "cancel"), TypeError);
  }
  assert.deepEqual(requests, []);
});

test("a client sends both, and reads again after a retry", async () => {
  const wire = new Wire();
  try {
    await wire.welcome();
    serve([200, { topic: "job:42", status: "cancelled" }], [202, { job: "42", topic: "job:42" }]);
    assert.equal((await wire.rt.cancel("job:42")).status, "cancelled");
    assert.equal((await wire.rt.retry("job:42")).topic, "job:42");
  } finally {
    wire.rt.close();
  }
});
