/** The longest wait between two tries. */
export const MAX_SECONDS = 30;

/**
 * Seconds to wait before trying again: full jitter.
 *
 * @param {number} tries failures in a row before this one, from 0
 * @param {number} random uniform in [0, 1)
 */
export function backoffSeconds(tries, random) {
  return random * Math.min(MAX_SECONDS, 0.5 * 2 ** tries);
}
