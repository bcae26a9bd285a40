const FRAME_MILLISECONDS = 16;
// Hidden pages and frames scrolled out of sight get no animation frames at all.
const PATIENCE_MILLISECONDS = 250;

/**
 * Call `paint` once, with the next animation frame, or by a timer where none comes.
 *
 * @param {() => void} paint
 */
export function nextFrame(paint) {
  const page = globalThis.document;
  if (typeof globalThis.requestAnimationFrame !== "function" || page?.hidden) {
    setTimeout(paint, FRAME_MILLISECONDS);
    return;
  }
  const once = () => {
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    paint();
  };
  const frame = requestAnimationFrame(once);
  const timer = setTimeout(once, PATIENCE_MILLISECONDS);
}
