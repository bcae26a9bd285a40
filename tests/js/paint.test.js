import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { nextFrame } from "../../semantik_realtime/web/static/paint.js";
import { Page, pass } from "./wire.js";

let page;

beforeEach(() => {
  page = new Page();
  mock.timers.enable({ apis: ["setTimeout"] });
});

afterEach(() => {
  mock.timers.reset();
  page.remove();
});

test("paint runs once, by the animation frame or by the timer", async () => {
  for (const comesFirst of [() => page.animate(), () => pass(0.25)]) {
    let paints = 0;
    nextFrame(() => paints++);
    await comesFirst();
    assert.equal(paints, 1);
    page.animate();
    await pass(1);
    assert.equal(paints, 1);
  }
});

test("a hidden page is painted by a timer", async () => {
  page.turn(true);
  let paints = 0;
  nextFrame(() => paints++);
  assert.equal(page.frames, 0);
  await pass(0.016);
  assert.equal(paints, 1);
});
