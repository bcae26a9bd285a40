import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { plainId } from "../../semantik_realtime/web/static/protocol.js";
import { applyPart, EMPTY_VIEW } from "../../semantik_realtime/web/static/reader.js";
import { connect, summarize } from "../../semantik_realtime/web/static/realtime.js";
import { isFinished } from "../../semantik_realtime/web/static/rest.js";

function read(name) {
  return readFileSync(new URL(`../vectors/${name}.json`, import.meta.url), "utf8");
}

function cases(name) {
  return JSON.parse(read(name)).cases;
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

for (const { name, topic, states, finished } of cases("finished")) {
  test(`finished: ${name}`, () => {
    const job = topic.startsWith("job:") ? plainId(topic) : null;
    const view = { ...EMPTY_VIEW, states: new Map(Object.entries(states)), synced: true };
    assert.equal(isFinished(job, view), finished);
  });
}

for (const { name, states, job, now_ms, summary } of cases("summary")) {
  test(`summary: ${name}`, () => {
    assert.deepEqual(summarize(new Map(Object.entries(states)), job, now_ms), summary);
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

test("topic: the client subscribes to the topic that a name means, and refuses others", () => {
  const rt = connect({ url: "ws://127.0.0.1:9/", storage: null, WebSocket: Nowhere });
  const watch = (topic) => {
    const watching = rt.watch(topic, {});
    watching.close();
    return watching.topic;
  };
  try {
    for (const { topic, valid, named } of cases("topic")) {
      if (valid || named) assert.equal(watch(topic), named ?? topic);
      else assert.throws(() => watch(topic), TypeError, JSON.stringify(topic));
    }
    const looksEncoded = /^(_?~|.*~[0-9A-F]{2})/;
    for (const { id, encoded } of JSON.parse(read("topic")).ids) {
      if (encoded !== null) assert.equal(plainId(`job:${encoded}`), id);
      if (encoded === null) assert.throws(() => watch(`job:${id}`), TypeError, JSON.stringify(id));
      // Such an id means the encoded one.
      else if (!looksEncoded.test(id)) assert.equal(watch(`job:${id}`), `job:${encoded}`);
    }
  } finally {
    rt.close();
  }
});
