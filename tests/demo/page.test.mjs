import assert from "node:assert/strict";
import test from "node:test";

import { leftText, Pace, rateText } from "../../semantik_realtime/demo/static/pace.js";
import { furthest, percent } from "../../semantik_realtime/demo/static/state.js";

const running = (current, attempt = 1) => ({
  status: "running",
  attempt,
  progress: { current, total: 40, unit: "files" },
});

test("a steady job has its rate and its time left", () => {
  const pace = new Pace();
  pace.start(100);
  for (let second = 1; second <= 5; second++) pace.add(100 + second, 4 * second);
  assert.equal(pace.rate(105), 4);
  assert.equal(pace.secondsLeft(105, 20), 5);
});

test("the rate follows the last seconds, not the whole life of a job", () => {
  const pace = new Pace();
  pace.start(0);
  for (let second = 1; second <= 60; second++) pace.add(second, second);
  for (let second = 61; second <= 80; second++) pace.add(second, 60 + 10 * (second - 60));
  assert.ok(Math.abs(pace.rate(80) - 10) < 0.5);
});

test("the rate sinks while nothing comes", () => {
  const pace = new Pace();
  pace.start(0);
  for (let second = 1; second <= 5; second++) pace.add(second, second);
  assert.ok(pace.rate(60) < 0.1);
});

test("a page that joins late knows the rate from the start of the job", () => {
  const pace = new Pace();
  pace.start(1000 - 20);
  pace.add(1000, 100);
  assert.equal(pace.rate(1000), 5);
});

test("a new attempt starts anew", () => {
  const pace = new Pace();
  pace.start(0);
  pace.add(10, 30);
  pace.add(12, 2);
  assert.equal(pace.rate(12), null);
  pace.add(14, 4);
  assert.equal(pace.rate(14), 1);
});

test("the time left does not jump with each estimate", () => {
  const pace = new Pace();
  pace.start(0);
  for (let second = 1; second <= 10; second++) pace.add(second, second);
  assert.equal(pace.secondsLeft(10, 30), 30);
  pace.add(10.5, 12);
  const shown = pace.secondsLeft(10.5, 28);
  assert.ok(shown < 29.6 && shown > 27, String(shown));
});

test("texts for people", () => {
  assert.equal(rateText(12.4, "files"), "12 files/s");
  assert.equal(rateText(0.05, "files"), "3.0 files/min");
  assert.equal(leftText(7.2), "7 s left");
  assert.equal(leftText(200), "3 min left");
});

test("of two accounts of a job the furthest counts", () => {
  const live = running(20);
  assert.equal(furthest([live, running(17)]), live);
  const ended = { ...running(18), status: "cancelled" };
  assert.equal(furthest([live, ended]), ended);
  const again = running(1, 2);
  assert.equal(furthest([live, ended, again]), again);
  const never = { status: "cancelled", attempt: 0 };
  assert.equal(furthest([{ status: "queued", attempt: 0 }, never]), never);
  assert.equal(furthest([null, live, undefined]), live);
});

test("the bar is full only when the job is done", () => {
  assert.equal(percent({ ...running(399), progress: { current: 399, total: 400 } }), 99);
  assert.equal(percent({ status: "completed", attempt: 1 }), 100);
  assert.equal(percent({ status: "running", progress: { current: 3, total: null } }), null);
  assert.equal(percent({ status: "queued" }), 0);
});
