import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { read, UNKNOWN } from "../../semantik_realtime/web/static/reader.js";
import { connect } from "../../semantik_realtime/web/static/realtime.js";

function cases(name) {
  const file = new URL(`../vectors/${name}.json`, import.meta.url);
  return JSON.parse(readFileSync(file, "utf8")).cases;
}

/** A WebSocket that never opens. */
class Nowhere {
  addEventListener() {}
  send() {}
  close() {}
}

for (const { name, events, states } of cases("fold")) {
  test(`fold: ${name}`, () => {
    const synced = { ...UNKNOWN, synced: true };
    const offset = events.at(-1)?.offset ?? 0;
    const part = { prev: 0, offset, cursor: `e.${offset}.00000000`, events };
    const { view } = read(synced, "events", part);
    assert.deepEqual(Object.fromEntries(view.states), states);
  });
}

test("topic: the client refuses what the server would refuse", () => {
  const rt = connect({ url: "ws://127.0.0.1:9/", storage: null, WebSocket: Nowhere });
  try {
    for (const { topic, valid } of cases("topic")) {
      const watch = () => rt.watch(topic, {}).close();
      if (valid) assert.doesNotThrow(watch, topic);
      else assert.throws(watch, TypeError, JSON.stringify(topic));
    }
  } finally {
    rt.close();
  }
});
