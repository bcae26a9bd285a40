const FIRST_SECONDS = 0.5;

/** The longest wait between two connection attempts. */
export const LONGEST_SECONDS = 30;

/**
 * Return the seconds to wait before the next connection attempt: "full jitter", from 0 up to a
 * limit that doubles with each failure, so that the clients of a restarted server spread out.
 *
 * @param {number} failures in a row before this one, from 0
 * @param {number} random uniform in [0, 1)
 */
export function backoffSeconds(failures, random) {
  return random * Math.min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** failures);
}

/**
 * Return the seconds to wait before a client tries again that the server has no place for.
 *
 * @param {number} random uniform in [0, 1)
 */
export function slowBackoffSeconds(random) {
  return LONGEST_SECONDS * (1 + random) / 2;
}
