import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { applyPart, EMPTY_VIEW } from "../../semantik_realtime/web/static/reader.js";
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

/** Apply this batch to a view with these states; return the new view and the shown offsets. */
function readBatch(states, events, offset) {
  const synced = { ...EMPTY_VIEW, states: new Map(Object.entries(states)), synced: true };
  const part = { prev: 0, offset, cursor: `e.${offset}.00000000`, events };
  const step = applyPart(synced, "events", part);
  const { view } = step;
  return {
    known: [Object.fromEntries(view.states), view.offset, view.cursor, step.resubscribe],
    shown: step.events.map(({ event }) => event.offset),
  };
}

for (const { name, events, states } of cases("fold")) {
  test(`fold: ${name}`, () => {
    const { known } = readBatch({}, events, events.at(-1)?.offset ?? 0);
    assert.deepEqual(known[0], states);
  });
}

for (const { name, events, kept } of cases("conflate")) {
  test(`conflate: ${name}`, () => {
    const before = Object.fromEntries(events.map(({ key }) => [key, { status: "queued" }]));
    const offset = events.at(-1)?.offset ?? 0;
    const whole = readBatch(before, events, offset);
    const stay = new Set(kept);
    const conflated = readBatch(before, events.filter(({ offset }) => stay.has(offset)), offset);
    assert.deepEqual(conflated.known, whole.known);
    assert.deepEqual(conflated.shown, kept);
  });
}

test("topic: the client refuses the names that the server refuses", () => {
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
