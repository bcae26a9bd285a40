import assert from "node:assert/strict";
import { test } from "node:test";

import { backoffSeconds, LONGEST_SECONDS } from "../../semantik_realtime/web/static/backoff.js";

test("the longest possible wait doubles from half a second up to 30 seconds", () => {
  const longest = [0, 1, 2, 3, 4, 5, 6, 7].map((tries) => backoffSeconds(tries, 1));
  assert.deepEqual(longest, [0.5, 1, 2, 4, 8, 16, 30, 30]);
});

test("a wait may be anything from nothing to the longest", () => {
  assert.equal(backoffSeconds(3, 0), 0);
  assert.equal(backoffSeconds(3, 0.25), 1);
});

test("tries without end wait no longer than the longest", () => {
  assert.equal(backoffSeconds(1e6, 0.5), LONGEST_SECONDS / 2);
});
