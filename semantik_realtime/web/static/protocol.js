/** Names, numbers and limits of the wire, version 1 (docs/protocol.md). */

export const SUBPROTOCOL = "semantik.realtime.v1";
/** What a token for one topic begins with. */
export const TOPIC_TOKEN = "rt-topic.";

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
  const topic = `${kind}:${escapeId(id)}`;
  return TOPIC_PATTERN.test(topic) ? topic : null;
}

/**
 * Return the id of a topic as the application has it: the key of the job in the topic's states.
 *
 * @param {string} topic
 */
export function plainId(topic) {
  const id = topic.slice(topic.indexOf(":") + 1);
  try {
    const bytes = id.replace(/^_~/, "~").replace(/~([0-9A-F]{2})/g, "%$1");
    const plain = decodeURIComponent(bytes);
    // Everything that `escapeId` does not write is an id that looks like an escaped one.
    return escapeId(plain) === id ? plain : id;
  } catch {
    return id;
  }
}

/** @param {string} id */
function escapeId(id) {
  const escaped = id.replace(/^[^A-Za-z0-9]|[^A-Za-z0-9_.@=+-]/gu, escapeCharacter);
  return escaped.startsWith("~") ? `_${escaped}` : escaped;
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

const CLOSE_TOO_BIG = 1009;
const CLOSE_BAD_FRAME = 4400;
export const CLOSE_UNAUTHENTICATED = 4401;
export const CLOSE_EXPIRED = 4402;
const CLOSE_FORBIDDEN = 4403;
export const CLOSE_AUTH_TIMEOUT = 4408;
const CLOSE_EVICTED = 4413;
const CLOSE_FLOOD = 4420;

/** What `onDenied` of a topic calls the close codes after which there is no connection. */
const DENIED_CODES = new Map([
  [CLOSE_TOO_BIG, "too_big"],
  [CLOSE_BAD_FRAME, "bad_frame"],
  [CLOSE_UNAUTHENTICATED, "unauthenticated"],
  [CLOSE_EXPIRED, "expired"],
  [CLOSE_FORBIDDEN, "forbidden"],
  [CLOSE_AUTH_TIMEOUT, "unauthenticated"],
  [CLOSE_FLOOD, "too_many_frames"],
]);

/**
 * Return true if a retry after this close code would be refused again.
 *
 * @param {number} code as the browser reports it; 1006 is a broken network
 */
export function isFinalCloseCode(code) {
  return code !== CLOSE_EXPIRED && DENIED_CODES.has(code);
}

/**
 * Return true if a retry after this close code can succeed, but not soon: the server has no place
 * for this client, or the code is of a newer protocol than this client knows.
 *
 * @param {number} code
 */
export function isSlowCloseCode(code) {
  const isKnown = DENIED_CODES.has(code) || code === CLOSE_EVICTED;
  return code >= 4400 && code <= 4499 && !isKnown;
}

/** @param {number | undefined} code of the close that ended the connection for good */
export function deniedCode(code) {
  return DENIED_CODES.get(code ?? 0) ?? "forbidden";
}

/** The status of a job whose attempt is over. */
const END_STATUSES = new Set(["completed", "failed", "cancelled", "lost"]);
/** The status of a job that goes on. */
const OPEN_STATUSES = new Set(["queued", "running", "retrying", "cancelling"]);

/** @param {import("./realtime.js").State} state */
export function hasEnded({ status }) {
  return END_STATUSES.has(status ?? "");
}

/** @param {import("./realtime.js").State} state */
export function isOpen(state) {
  return OPEN_STATUSES.has(state?.status ?? "");
}
