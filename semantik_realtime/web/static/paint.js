const FRAME_MILLISECONDS = 16;
// Browsers run no animation frames for a hidden page or a frame scrolled out of sight.
const LONGEST_WAIT_MILLISECONDS = 250;

/**
 * Paints what has changed, at most once per animation frame.
 *
 * @template T
 */
export class Painter {
  #paint;
  /** @type {Set<T>} changed since the last frame, in the order of their first change */
  #unpainted = new Set();
  #isDue = false;

  /** @param {(changed: T) => void} paint called in the frame, once for each */
  constructor(paint) {
    this.#paint = paint;
  }

  /** @param {T} changed */
  paintSoon(changed) {
    this.#unpainted.add(changed);
    if (!this.#isDue) nextFrame(() => this.#paintAll());
    this.#isDue = true;
  }

  /** @param {T} removed not painted any more */
  drop(removed) {
    this.#unpainted.delete(removed);
  }

  #paintAll() {
    this.#isDue = false;
    const changed = [...this.#unpainted];
    this.#unpainted.clear();
    for (const each of changed) this.#paint(each);
  }
}

/**
 * Call `paint` once: with the next animation frame, or by a timer if no frame comes.
 *
 * @param {() => void} paint
 */
function nextFrame(paint) {
  const page = globalThis.document;
  if (typeof globalThis.requestAnimationFrame !== "function" || page?.hidden) {
    setTimeout(paint, FRAME_MILLISECONDS);
    return;
  }
  const paintOnce = () => {
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    paint();
  };
  const frame = requestAnimationFrame(paintOnce);
  const timer = setTimeout(paintOnce, LONGEST_WAIT_MILLISECONDS);
}
