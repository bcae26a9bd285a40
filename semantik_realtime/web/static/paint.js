const FRAME_MILLISECONDS = 16;
// Browsers run no animation frames for a hidden page or a frame scrolled out of sight.
const LONGEST_WAIT_MILLISECONDS = 250;

/**
 * Call `paint` once: with the next animation frame, or by a timer if no frame comes.
 *
 * @param {() => void} paint
 */
export function nextFrame(paint) {
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
