import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { afterEach, beforeEach, mock, test } from "node:test";

import { summarize } from "../../semantik_realtime/web/static/realtime.js";
import { event, live, pass, snapshot, Wire } from "./wire.js";

const PAGE = await readFile(new URL("../../docs/workflows.md", import.meta.url), "utf8");
const IMPORT = 'import { connect, summarize } from "/realtime/static/realtime.js";';
const [[, CODE]] = PAGE.matchAll(/^```javascript\n(.*?)^```/gms);
const WORKFLOW = { status: "running", workflow: { total: 3, ends: "last" } };

let wire;

beforeEach(() => {
  mock.timers.enable({ apis: ["setTimeout"] });
  wire = new Wire();
});

afterEach(() => {
  wire.rt.close();
  mock.timers.reset();
});

const member = (n, status, more = {}) => ({
  status,
  name: "app.index_page",
  member: { n, at: `step ${n + 1}/3` },
  ...more,
});

test("the example of the page shows the summary, and where a member failed", async () => {
  assert.ok(CODE.startsWith(IMPORT));
  const [shown, warned] = [[], []];
  const run = new Function("connect", "summarize", "show", "warn", CODE.slice(IMPORT.length));
  run(
    () => wire.rt,
    summarize,
    (text) => shown.push(text),
    (text) => warned.push(text),
  );
  const socket = await wire.welcome();
  const topic = "job:import~3A42";
  socket.push(snapshot(topic, 1, { "import:42": WORKFLOW, a: member(0, "running") }));
  await pass(1);
  assert.equal(shown.at(-1), "0 of 3 done, 1 running, 0 failed");
  const failed = member(1, "failed", { error: { type: "ValueError", message: "empty" } });
  socket.push(
    live(
      topic,
      1,
      event(2, "a", { state: member(0, "completed") }),
      event(3, "b", { state: failed }),
    ),
  );
  await pass(1);
  assert.equal(shown.at(-1), "1 of 3 done, 0 running, 1 failed");
  assert.deepEqual(warned, ["step 2/3: app.index_page: empty"]);
});

test("the time of a summary is now, unless it is given", () => {
  const started_at = new Date(Date.now() - 10_000).toISOString();
  const states = new Map([
    ["w", { ...WORKFLOW, started_at }],
    ["a", member(0, "completed")],
  ]);
  const { rate, seconds_left } = summarize(states, "w");
  assert.ok(Math.abs(rate - 0.1) < 0.01);
  assert.ok(Math.abs(seconds_left - 20) < 1);
});
