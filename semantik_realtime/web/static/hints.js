import { CLOSE_AUTH_TIMEOUT, CLOSE_UNAUTHENTICATED } from "./protocol.js";

const LOOPBACK = /^(?:localhost|.*\.localhost|127(?:\.\d+){3}|\[::1\])$/;

/** Return true if the page is open on the machine that serves it: its reader is its developer. */
function isDevelopment() {
  return LOOPBACK.test(globalThis.location?.hostname ?? "");
}

/** Writes to the browser's console why the server refuses something, once for each cause. */
export class Hints {
  #address;
  #hasToken;
  /** @type {Set<string>} the causes that were written */
  #written = new Set();

  /**
   * @param {string} address of the server's WebSocket
   * @param {boolean} hasToken whether the page has given a source of tokens
   */
  constructor(address, hasToken) {
    this.#address = address;
    this.#hasToken = hasToken;
  }

  /**
   * The server refuses the connection for good.
   *
   * @param {number | undefined} code
   * @param {string | undefined} reason the server's sentence
   */
  refused(code, reason) {
    const isUnauthenticated = code === CLOSE_UNAUTHENTICATED || code === CLOSE_AUTH_TIMEOUT;
    const advice = !isUnauthenticated || !isDevelopment() ? ""
      : this.#hasToken
        ? " Does `token` of connect() return a JWT that the server's SEMANTIK_REALTIME_JWT_SECRET (or JWT_SECRET_KEY) has signed?"
        : " connect() has no `token`, and the browser sent no cookie that the server accepts. Pass connect({ token }), or log in; without any login start the server with ENVIRONMENT=development DISABLE_AUTH=1.";
    const sentence = reason ? `: ${reason.replace(/\.$/, "")}` : "";
    this.#write(`${code}`, `the server refuses the connection (${code})${sentence}.${advice}`);
  }

  /**
   * The server refuses a topic.
   *
   * @param {string} topic
   */
  denied(topic) {
    if (!isDevelopment()) return;
    const [kind] = topic.split(":");
    const advice = kind === "user" ? "a feed is for its user alone"
      : kind === "job" ? "a job is for its owner, whom its task names in the header realtime_owner"
      : "a topic without an owner needs a rule";
    const rule = "the server's `authorize` may allow more";
    this.#write(`denied ${kind}`, `${topic} is denied, or does not exist: ${advice}; ${rule}.`);
  }

  /**
   * The connection failed, or ended, and is tried again.
   *
   * @param {number | undefined} code
   * @param {string | undefined} reason
   * @param {boolean} wasOpen whether there was a connection before
   */
  retrying(code, reason, wasOpen) {
    if (!isDevelopment()) return;
    if (code !== undefined && code >= 4000) {
      this.#write(`${code}`, `the server ended the connection (${code} ${reason}); the client tries again later.`);
    } else if (!wasOpen) {
      const advice = code === undefined ? ""
        : " Are the routes of Realtime there (option `url` of connect), and has uvicorn a WebSocket library (pip install websockets)?";
      this.#write("closed", `no connection to ${this.#address} yet (${reason || code}).${advice}`);
    }
  }

  /**
   * The server refuses a frame.
   *
   * @param {string} code
   * @param {string} message
   */
  mistaken(code, message) {
    this.#write(`error ${code}`, `${code}: ${message}`);
  }

  /**
   * @param {string} cause
   * @param {string} text
   */
  #write(cause, text) {
    if (this.#written.has(cause)) return;
    this.#written.add(cause);
    console.warn(`realtime: ${text}`);
  }
}
