import assert from "node:assert/strict";
import test from "node:test";

import { furthest, percent } from "../../semantik_realtime/demo/static/job-state.js";
import { Pace } from "../../semantik_realtime/demo/static/pace.js";
import { failureText, gapText, leftText, rateText, recordText, silenceText } from "../../semantik_realtime/demo/static/text.js";

const running = (current, attempt = 1) => ({
  status: "running",
  attempt,
  progress: { current, total: 40, unit: "files" },
});

test("a job of steady speed has that rate and the matching time left", () => {
  const pace = new Pace();
  pace.start(100);
  for (let second = 1; second <= 5; second++) pace.add(100 + second, 4 * second);
  assert.equal(pace.rate(105), 4);
  assert.equal(pace.secondsLeft(105, 20), 5);
});

test("the rate is that of the last seconds, not of the whole job", () => {
  const pace = new Pace();
  pace.start(0);
  for (let second = 1; second <= 60; second++) pace.add(second, second);
  for (let second = 61; second <= 80; second++) pace.add(second, 60 + 10 * (second - 60));
  assert.ok(Math.abs(pace.rate(80) - 10) < 0.5);
});

test("the rate falls while nothing arrives", () => {
  const pace = new Pace();
  pace.start(0);
  for (let second = 1; second <= 5; second++) pace.add(second, second);
  assert.ok(pace.rate(60) < 0.1);
});

test("after some seconds without progress the silence is told", () => {
  const pace = new Pace();
  assert.equal(pace.silence(0), null);
  pace.start(0);
  for (let second = 1; second <= 5; second++) pace.add(second, second);
  pace.add(7, 5);
  assert.equal(pace.silence(7.5), null);
  assert.equal(pace.silence(13), 8);
  pace.add(13, 6);
  assert.equal(pace.silence(14), null);
});

test("the pause between two files of a slow job is no silence", () => {
  const pace = new Pace();
  pace.start(0);
  for (let file = 1; file <= 3; file++) pace.add(10 * file, file);
  assert.equal(pace.silence(39), null);
  assert.equal(pace.silence(60), 30);
});

test("a page that is opened late computes the rate from the start of the job", () => {
  const pace = new Pace();
  pace.start(1000 - 20);
  pace.add(1000, 100);
  assert.equal(pace.rate(1000), 5);
});

test("a new attempt restarts the measurement", () => {
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

test("rates and times left as text", () => {
  assert.equal(rateText(12.4, "files"), "12 files/s");
  assert.equal(rateText(0.05, "files"), "3.0 files/min");
  assert.equal(leftText(7.2), "7 s left");
  assert.equal(leftText(200), "3 min left");
  assert.equal(silenceText(8.7), "no news for 8 s");
  assert.equal(silenceText(75), "no news for 1 min 15 s");
});

test("of several states of a job the furthest is shown", () => {
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

test("the bar is full only after the end of the job", () => {
  assert.equal(percent({ ...running(399), progress: { current: 399, total: 400 } }), 99);
  assert.equal(percent({ status: "completed", attempt: 1 }), 100);
  assert.equal(percent({ status: "running", progress: { current: 3, total: null } }), null);
  assert.equal(percent({ status: "queued" }), 0);
});

test("the end of a job reads as a sentence when its process was killed", () => {
  const error = { type: "WorkerLostError", message: "Worker exited prematurely: signal 9" };
  assert.match(failureText({ status: "failed", error }), /^The process that ran this job was killed\. /);
  assert.match(failureText({ status: "lost" }), /^The worker that ran this job is gone\. /);
  const lost = { status: "lost", error: { type: "Lost", message: "no worker has begun it" } };
  assert.equal(failureText(lost), "Lost: no worker has begun it");
  assert.match(failureText({ ...lost, started_at: "2026-01-31T09:00:00.000Z" }), /^The worker .* is gone\. /);
  assert.equal(failureText({ status: "failed", error: { type: "OSError", message: "x" } }), "OSError: x");
  assert.equal(failureText({ status: "cancelled", error }), "");
  assert.equal(failureText({ status: "running" }), "");
});

test("a log record of a task reads as one line", () => {
  assert.equal(recordText({ level: "info", logger: "app", text: "read 3" }), "info: read 3");
  const exception = { type: "ValueError", message: "no page" };
  assert.equal(recordText({ level: "error", text: "skipped", exception, dropped: 12 }),
    "error: skipped ValueError: no page (12 more were left out)");
});

test("what a page has not got is said", () => {
  assert.equal(gapText("conflated", 12), "12 events left out: this page reads too slowly.");
  assert.equal(gapText("too_far", 1), "1 event summed up: this page was away for too long.");
  assert.equal(gapText("diverged", null), "The log was lost, and goes on from an earlier state.");
});
