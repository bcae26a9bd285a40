import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import * as realtime from "../../semantik_realtime/web/static/realtime.js";

const read = (path) => readFileSync(new URL(path, import.meta.url), "utf8");
const declarations = read("../../semantik_realtime/web/static/realtime.d.ts");
const found = (pattern) => [...declarations.matchAll(pattern)].map(([, name]) => name);

test("what realtime.js exports is what realtime.d.ts declares", () => {
  const values = found(/^export (?:declare )?(?:function|class|const|let|var|enum) (\w+)/gm);
  assert.deepEqual(Object.keys(realtime).sort(), values.sort());
});

test("types.ts uses every name and member of realtime.d.ts", () => {
  const used = new Set(read("types.ts").match(/\w+/g));
  const names = found(/^export \w+ (\w+)/gm);
  const members = found(/^ {2}(?:readonly )?(\w+)\??[:(]/gm);
  assert.ok(names.length > 10 && members.length > 30);
  assert.deepEqual([...names, ...members].filter((name) => !used.has(name)), []);
});
