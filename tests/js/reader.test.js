import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import {
  applyPart,
  EMPTY_VIEW,
  partsByTopic,
  shownStates,
} from "../../semantik_realtime/web/static/reader.js";

function cases(name) {
  const file = new URL(`../vectors/${name}.json`, import.meta.url);
  return JSON.parse(readFileSync(file, "utf8")).cases;
}

for (const { name, frames, expect } of cases("reader")) {
  test(name, () => {
    const views = new Map(Object.keys(expect.views).map((topic) => [topic, EMPTY_VIEW]));
    const got = Object.fromEntries([...views.keys()].map((topic) => [topic, []]));
    const resubscribed = [];
    const gaps = Object.fromEntries([...views.keys()].map((topic) => [topic, []]));
    for (const frame of frames) {
      for (const [topic, part] of partsByTopic(frame)) {
        const step = applyPart(views.get(topic), frame.op, part);
        views.set(topic, step.view);
        got[topic].push(...step.events.map(({ event }) => event.offset));
        if (step.gap) gaps[topic].push(step.gap);
        if (step.resubscribe) resubscribed.push({ topic, cursor: step.view.cursor });
      }
    }
    const found = [...views].map(([topic, { states, offset, cursor }]) => [
      topic,
      { states: Object.fromEntries(states), offset, cursor },
    ]);
    assert.deepEqual(Object.fromEntries(found), expect.views);
    assert.deepEqual(got, expect.shown);
    assert.deepEqual(resubscribed, expect.resubscribe);
    if (expect.gaps) assert.deepEqual(gaps, expect.gaps);
  });
}

for (const { name, steps, folded, offset, cursor } of cases("overlay")) {
  test(`R6: ${name}`, () => {
    let view = EMPTY_VIEW;
    for (const { frame, shown: expected, overlay = [] } of steps) {
      const parts = frame.op === "restored" ? [["job:42", frame]] : partsByTopic(frame);
      for (const [topic, part] of parts) {
        if (topic === "job:42") view = applyPart(view, frame.op, part).view;
      }
      assert.deepEqual(Object.fromEntries(shownStates(view)), expected, JSON.stringify(frame));
      assert.deepEqual([...view.overlay.keys()].sort(), overlay, JSON.stringify(frame));
    }
    assert.deepEqual(Object.fromEntries(view.states), folded);
    assert.deepEqual([view.offset, view.cursor], [offset, cursor]);
  });
}

test("only the history of a snapshot is marked as replayed", () => {
  const event = (offset) => ({ offset, type: "log", time: "2026-11-23T08:00:00.000Z", key: "1" });
  const cursor = "e.1.00000000";
  const snapshot = { mode: "snapshot", offset: 1, cursor, states: {}, events: [event(1)] };
  const first = applyPart(EMPTY_VIEW, "sync", snapshot);
  const second = applyPart(first.view, "sync", {
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

test("a view that was returned never changes", () => {
  const state = { status: "running" };
  const part = { mode: "snapshot", offset: 1, cursor: "e.1.0", states: { a: state } };
  const { view } = applyPart(EMPTY_VIEW, "sync", part);
  const event = { offset: 2, type: "x", time: "t", key: "b", state };
  applyPart(view, "events", { prev: 1, offset: 2, cursor: "e.2.0", events: [event] });
  const laid = applyPart(view, "provisional", { states: { c: state } }).view;
  applyPart(laid, "restored", {});
  assert.deepEqual([...view.states.keys(), ...view.overlay.keys()], ["a"]);
  assert.deepEqual([...laid.overlay.keys()], ["c"]);
  assert.equal(EMPTY_VIEW.states.size + EMPTY_VIEW.overlay.size, 0);
});
