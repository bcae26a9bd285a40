import { backoffSeconds, slowBackoffSeconds } from "./backoff.js";
import {
  CLOSE_EXPIRED,
  DEFAULT_HEARTBEAT_SECONDS,
  isFinalCloseCode,
  isSlowCloseCode,
  SUBPROTOCOL,
  TOPIC_TOKEN,
} from "./protocol.js";

/**
 * @typedef {import("./realtime.js").ConnectionState} ConnectionState
 * @typedef {import("./realtime.js").ConnectionInfo} ConnectionInfo
 *
 * @typedef {object} Link one socket, from the call of `token` until the socket is given up
 * @property {WebSocket | null} socket null while `token` runs
 * @property {boolean} welcomed whether the server has sent `welcome`
 * @property {boolean} refreshed whether `token` was called with `expired: true`
 */

// For the token, the handshake and the 10 s that the server waits for `auth`, together.
const WELCOME_SECONDS = 15;
/** Heartbeats without any frame after which the link counts as broken. */
const MISSED_HEARTBEATS = 2.5;
const PING_ANSWER_SECONDS = 5;
// A connection that ends sooner does not reset the backoff. Otherwise all clients would reconnect
// at once, again and again, to a server that accepts connections and then fails.
const STABLE_SECONDS = 5;

/** Keeps one WebSocket open: reconnects until it is closed, or refused for good. */
export class Connection {
  /** @type {ConnectionState} */
  state = "connecting";
  /** @type {ConnectionInfo} why `state` changed last */
  info = {};

  #url;
  #token;
  #WebSocket;
  #onFrame;
  #onState;
  /** @type {Link | null} the current link; null between two links, and after the end */
  #link = null;
  /** Failed links in a row; reset by a link that lasts STABLE_SECONDS, and by `wake`. */
  #failures = 0;
  /** Whether the credential has expired and no welcome has come since. */
  #expired = false;
  #heartbeatSeconds = DEFAULT_HEARTBEAT_SECONDS;
  /**
   * Between two links it opens the next one; during a link it gives up a silent server.
   *
   * @type {ReturnType<typeof setTimeout> | undefined}
   */
  #timer;
  /** @type {ReturnType<typeof setTimeout> | undefined} resets the backoff of a stable link */
  #stableTimer;

  /**
   * @param {object} options
   * @param {string} options.url
   * @param {import("./realtime.js").ConnectOptions["token"]} options.token
   * @param {NonNullable<import("./realtime.js").ConnectOptions["WebSocket"]>} options.WebSocket
   * @param {(frame: any) => void} options.onFrame called for each frame but `bye`
   * @param {() => void} options.onState called after `state` has changed
   */
  constructor({ url, token, WebSocket, onFrame, onState }) {
    this.#url = url;
    this.#token = token;
    this.#WebSocket = WebSocket;
    this.#onFrame = onFrame;
    this.#onState = onState;
  }

  async open() {
    /** @type {Link} */
    const link = { socket: null, welcomed: false, refreshed: this.#expired };
    this.#link = link;
    this.#expectFrameWithin(WELCOME_SECONDS);
    try {
      const token = await this.#token?.({ expired: this.#expired });
      if (link !== this.#link) return;
      // One for a topic comes before the page's cookie, which the server reads before a frame.
      const isOfTopic = token?.startsWith(TOPIC_TOKEN);
      const offer = isOfTopic ? [SUBPROTOCOL, `access_token.${token}`] : SUBPROTOCOL;
      const socket = new this.#WebSocket(this.#url, offer);
      link.socket = socket;
      socket.onopen = () => {
        // Null: the server need not wait for a credential that the handshake did not have.
        const auth = { op: "auth", token: token || null };
        if (link === this.#link) socket.send(JSON.stringify(auth));
      };
      socket.onmessage = ({ data }) => {
        if (link === this.#link) this.#receive(link, data);
      };
      socket.onclose = ({ code, reason }) => {
        if (link === this.#link) this.#handleClose(link, code, reason);
      };
    } catch (error) {
      if (link === this.#link) this.#retry({ reason: String(error) });
    }
  }

  /**
   * Send a frame; drop it if the server has not sent `welcome` on this link.
   *
   * @param {object} frame
   */
  send(frame) {
    if (this.#link?.welcomed) this.#link.socket?.send(JSON.stringify(frame));
  }

  /**
   * The network or the page is back, or there is something to read: connect at once, or check that
   * the link still works.
   */
  wake() {
    if ((this.state === "reconnecting" || this.state === "idle") && this.#link === null) {
      this.#failures = 0;
      this.open();
    } else if (this.#link?.welcomed) {
      this.send({ op: "ping" });
      this.#expectFrameWithin(PING_ANSWER_SECONDS);
    }
  }

  /** Give the link back, until `wake`. */
  rest() {
    this.#dropLink();
    this.#setState("idle");
  }

  close() {
    this.#dropLink();
    this.#setState("closed");
  }

  /**
   * @param {Link} link
   * @param {unknown} data
   */
  #receive(link, data) {
    let frame;
    try {
      frame = JSON.parse(String(data));
    } catch {
      return;
    }
    if (frame?.op === "welcome") {
      link.welcomed = true;
      this.#expired = false;
      this.#heartbeatSeconds = frame.heartbeat_seconds || this.#heartbeatSeconds;
      this.#stableTimer = setTimeout(() => (this.#failures = 0), STABLE_SECONDS * 1000);
      this.#setState("live");
    }
    if (link.welcomed) this.#expectFrameWithin(MISSED_HEARTBEATS * this.#heartbeatSeconds);
    if (frame?.op === "degraded") this.#setState("degraded", { since: frame.since });
    if (frame?.op === "restored") this.#setState("live");
    if (frame?.op === "bye") this.#reconnectAfterBye(frame.reconnect_seconds);
    else if (frame) this.#onFrame(frame);
  }

  /**
   * @param {Link} link
   * @param {number} code
   * @param {string} reason
   */
  #handleClose(link, code, reason) {
    const isExpired = code === CLOSE_EXPIRED;
    // `token` was called with `expired: true`, and still returned an expired credential.
    const isStillExpired = isExpired && link.refreshed && !link.welcomed;
    if (isFinalCloseCode(code) || isStillExpired) {
      this.#dropLink();
      this.#setState("denied", { code, reason });
    } else {
      this.#expired ||= isExpired;
      if (isSlowCloseCode(code)) {
        this.#reconnectIn(slowBackoffSeconds(Math.random()), { code, reason });
      } else {
        this.#retry({ code, reason });
      }
    }
  }

  /** @param {ConnectionInfo} info */
  #retry(info) {
    this.#reconnectIn(backoffSeconds(this.#failures++, Math.random()), info);
  }

  /** @param {unknown} seconds the server has already spread its clients over time */
  #reconnectAfterBye(seconds) {
    const info = { reason: "bye" };
    if (typeof seconds === "number" && seconds >= 0) this.#reconnectIn(seconds, info);
    else this.#retry(info);
  }

  /**
   * @param {number} seconds
   * @param {ConnectionInfo} info
   */
  #reconnectIn(seconds, info) {
    this.#dropLink();
    this.#timer = setTimeout(() => this.open(), seconds * 1000);
    this.#setState("reconnecting", info);
  }

  /**
   * Give the link up if no frame arrives in time.
   *
   * @param {number} seconds
   */
  #expectFrameWithin(seconds) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      const isTokenPending = this.#link?.socket === null;
      this.#retry({ reason: isTokenPending ? "`token` has returned nothing yet" : "silent" });
    }, seconds * 1000);
  }

  #dropLink() {
    clearTimeout(this.#timer);
    clearTimeout(this.#stableTimer);
    const socket = this.#link?.socket;
    this.#link = null;
    socket?.close();
  }

  /**
   * @param {ConnectionState} state
   * @param {ConnectionInfo} info
   */
  #setState(state, info = {}) {
    const hasOtherCode = info.code !== undefined && info.code !== this.info.code;
    if (state === this.state && !hasOtherCode) return;
    this.state = state;
    this.info = info;
    this.#onState();
  }
}
