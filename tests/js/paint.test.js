import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { Painter } from "../../semantik_realtime/web/static/paint.js";
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
    new Painter(() => paints++).paintSoon("job:1");
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
  new Painter(() => paints++).paintSoon("job:1");
  assert.equal(page.frames, 0);
  await pass(0.016);
  assert.equal(paints, 1);
});

test("what changes several times is painted once, and what was dropped is not", async () => {
  const painted = [];
  const painter = new Painter((name) => painted.push(name));
  for (const name of ["job:2", "job:1", "job:2", "job:3"]) painter.paintSoon(name);
  painter.drop("job:1");
  page.animate();
  assert.deepEqual(painted, ["job:2", "job:3"]);
});

test("what changes while it is painted is painted with the next frame", () => {
  let paints = 0;
  const painter = new Painter((name) => paints++ || painter.paintSoon(name));
  painter.paintSoon("job:1");
  page.animate();
  assert.deepEqual([paints, page.frames], [1, 1]);
  page.animate();
  assert.deepEqual([paints, page.frames], [2, 0]);
});
