import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { afterEach, beforeEach, mock, test } from "node:test";

import { event, live, pass, snapshot, Wire } from "./wire.js";

const PAGE = await readFile(new URL("../../docs/migrate.md", import.meta.url), "utf8");
const IMPORT = 'import { connect } from "/realtime/static/realtime.js";';
const RUNNING = { status: "running", progress: { current: 1, total: 2 } };

/** The blocks that replace the page's earlier code: of celery-progress, then of python-socketio. */
const AFTER = [...PAGE.matchAll(/^```javascript\n\/\/ after\n(.*?)^```/gms)].map(([, code]) => code);

let wire;

beforeEach(() => {
  mock.timers.enable({ apis: ["setTimeout"] });
  wire = new Wire();
});

afterEach(() => {
  wire.rt.close();
  mock.timers.reset();
  mock.restoreAll();
});

/** Run a block with the real client; return what it paints and adds. */
function run(code) {
  assert.ok(code.startsWith(IMPORT));
  const [painted, added] = [[], []];
  const body = new Function("connect", "taskId", "paint", "add", code.slice(IMPORT.length));
  body(
    () => wire.rt,
    "42",
    (state) => painted.push(state),
    (file) => added.push(file),
  );
  return { painted, added };
}

test("the page has a replacement for celery-progress and one for python-socketio", () => {
  assert.equal(AFTER.length, 2);
});

test("each replacement paints the state of the task's job", async () => {
  const shown = AFTER.map(run);
  const socket = await wire.welcome();
  socket.push(snapshot("job:42", 1, { 42: RUNNING }));
  await pass(1);
  for (const { painted } of shown) assert.deepEqual(painted.at(-1), RUNNING);
});

test("the replacement of python-socketio adds each file once, those of the history too", async () => {
  const { added } = run(AFTER[1]);
  const socket = await wire.welcome();
  const file = (offset, name) =>
    event(offset, "42", { type: "file_completed", data: { file: name } });
  socket.push(snapshot("job:42", 1, { 42: RUNNING }, { events: [file(1, "a.txt")] }));
  socket.push(live("job:42", 1, file(2, "b.txt"), event(3, "42", { type: "note" })));
  await pass(1);
  assert.deepEqual(added, ["a.txt", "b.txt"]);
});
