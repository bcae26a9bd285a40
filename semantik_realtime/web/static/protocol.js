/** Names, numbers and limits of the wire, version 1 (docs/protocol.md). */

export const SUBPROTOCOL = "semantik.realtime.v1";

/** What the name of a topic may be; the server checks the same. */
const TOPIC_PATTERN = /^[a-z][a-z0-9_]{0,31}:[A-Za-z0-9_][A-Za-z0-9_.@=+~-]{0,199}$/;

/** A kind, and an id as the application has it: 1 to 200 characters, no control characters. */
const PLAIN_PATTERN = /^([a-z][a-z0-9_]{0,31}):([^\u0000-\u001f\u007f-\u009f\ud800-\udfff]{1,200})$/u;

/**
 * Return the topic that a page means: its name, or its kind and a plain id. The characters of an id
 * that no name may have are written as the bytes of their UTF-8: `job:a/b` is `job:a~2Fb`.
 *
 * @param {string} name
 * @returns {string | null} null: no topic can have that name
 */
export function topicName(name) {
  if (TOPIC_PATTERN.test(name)) return name;
  const [, kind, id] = PLAIN_PATTERN.exec(name) ?? [];
  if (!id) return null;
  const escaped = id.replace(/^[^A-Za-z0-9]|[^A-Za-z0-9_.@=+-]/gu, escapeCharacter);
  const topic = `${kind}:${escaped.startsWith("~") ? "_" : ""}${escaped}`;
  return TOPIC_PATTERN.test(topic) ? topic : null;
}

/** @param {string} character */
function escapeCharacter(character) {
  return [...new TextEncoder().encode(character)]
    .map((byte) => `~${byte.toString(16).toUpperCase().padStart(2, "0")}`)
    .join("");
}

/** The most events of history that a subscribe frame may ask for. */
export const MAX_HISTORY_EVENTS = 1000;

/** Topics in one subscribe frame. 100 of the longest names stay below the server's 64 KiB. */
export const MAX_TOPICS_PER_FRAME = 100;

/** The heartbeat until a `welcome` frame names another one. */
export const DEFAULT_HEARTBEAT_SECONDS = 20;

export const CLOSE_TOO_BIG = 1009;
export const CLOSE_EXPIRED = 4402;
const CLOSE_EVICTED = 4413;
const CLOSE_TOO_MANY_CONNECTIONS = 4429;

// After these 44xx codes a retry can succeed: the token is refreshed, the reader has caught up, or
// the lease of a dead server's connection has run out.
const RETRIED_CODES = new Set([CLOSE_EXPIRED, CLOSE_EVICTED, CLOSE_TOO_MANY_CONNECTIONS]);

/**
 * Return true if a retry after this close code would be refused again.
 *
 * @param {number} code as the browser reports it; 1006 is a broken network
 */
export function isFinalCloseCode(code) {
  return code === CLOSE_TOO_BIG || (code >= 4400 && code <= 4499 && !RETRIED_CODES.has(code));
}

/** The status of a job whose attempt is over. */
const END_STATUSES = new Set(["completed", "failed", "cancelled", "lost"]);

/** @param {import("./realtime.js").State} state */
export function hasEnded({ status }) {
  return END_STATUSES.has(status ?? "");
}
