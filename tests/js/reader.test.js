import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { parts, read, shown, UNKNOWN } from "../../semantik_realtime/web/static/reader.js";

function cases(name) {
  const file = new URL(`../vectors/${name}.json`, import.meta.url);
  return JSON.parse(readFileSync(file, "utf8")).cases;
}

for (const { name, frames, expect } of cases("reader")) {
  test(name, () => {
    const views = new Map(Object.keys(expect.views).map((topic) => [topic, UNKNOWN]));
    const told = Object.fromEntries([...views.keys()].map((topic) => [topic, []]));
    const asked = [];
    for (const frame of frames) {
      for (const [topic, part] of parts(frame)) {
        const step = read(views.get(topic), frame.op, part);
        views.set(topic, step.view);
        told[topic].push(...step.events.map(({ event }) => event.offset));
        if (step.resubscribe) asked.push({ topic, cursor: step.view.cursor });
      }
    }
    const found = [...views].map(([topic, { states, offset, cursor }]) => [
      topic,
      { states: Object.fromEntries(states), offset, cursor },
    ]);
    assert.deepEqual(Object.fromEntries(found), expect.views);
    assert.deepEqual(told, expect.shown);
    assert.deepEqual(asked, expect.resubscribe);
  });
}

for (const { name, steps, folded, offset, cursor } of cases("overlay")) {
  test(`R6: ${name}`, () => {
    let view = UNKNOWN;
    for (const { frame, shown: expected, overlay = [] } of steps) {
      const said = frame.op === "restored" ? [["job:42", frame]] : parts(frame);
      for (const [topic, part] of said) {
        if (topic === "job:42") view = read(view, frame.op, part).view;
      }
      assert.deepEqual(Object.fromEntries(shown(view)), expected, JSON.stringify(frame));
      assert.deepEqual([...view.overlay.keys()].sort(), overlay, JSON.stringify(frame));
    }
    assert.deepEqual(Object.fromEntries(view.states), folded);
    assert.deepEqual([view.offset, view.cursor], [offset, cursor]);
  });
}

test("only the history of a snapshot is replayed", () => {
  const event = (offset) => ({ offset, type: "log", time: "2026-11-23T08:00:00.000Z", key: "1" });
  const cursor = "e.1.00000000";
  const snapshot = { mode: "snapshot", offset: 1, cursor, states: {}, events: [event(1)] };
  const first = read(UNKNOWN, "sync", snapshot);
  const second = read(first.view, "sync", {
    mode: "replay",
    prev: 1,
    offset: 2,
    cursor,
    events: [event(2)],
  });
  assert.deepEqual(
    [...first.events, ...second.events].map(({ event, replayed }) => [event.offset, replayed]),
    [[1, true], [2, false]],
  );
});

test("a view that was given away does not change", () => {
  const state = { status: "running" };
  const part = { mode: "snapshot", offset: 1, cursor: "e.1.0", states: { a: state } };
  const { view } = read(UNKNOWN, "sync", part);
  const event = { offset: 2, type: "x", time: "t", key: "b", state };
  read(view, "events", { prev: 1, offset: 2, cursor: "e.2.0", events: [event] });
  const laid = read(view, "provisional", { states: { c: state } }).view;
  read(laid, "restored", {});
  assert.deepEqual([...view.states.keys(), ...view.overlay.keys()], ["a"]);
  assert.deepEqual([...laid.overlay.keys()], ["c"]);
  assert.equal(UNKNOWN.states.size + UNKNOWN.overlay.size, 0);
});
