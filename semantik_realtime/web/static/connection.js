import { backoffSeconds } from "./backoff.js";

/**
 * @typedef {import("./realtime.js").ConnectionState} ConnectionState
 * @typedef {import("./realtime.js").ConnectionInfo} ConnectionInfo
 * @typedef {{ socket: WebSocket | null, welcomed: boolean, refreshed: boolean }} Attempt
 */

const SUBPROTOCOL = "semantik.realtime.v1";
// Token, handshake and the 10 s the server waits for `auth`, together.
const WELCOME_SECONDS = 15;
const SILENT_HEARTBEATS = 2.5;
const PROBE_SECONDS = 5;
// A connection that ends sooner does not shorten the next wait: a server that accepts and then
// fails would otherwise be asked again at once, by everybody.
const SETTLED_SECONDS = 5;

/** The 44xx that pass: an old token, a slow reader, seats that a dead server still holds. */
const PASSING = new Set([4402, 4413, 4429]);

/**
 * Whether a client comes back after this close code without being told anything new.
 *
 * @param {number} code as the browser gives it; 1006 is the network
 */
export function isFinal(code) {
  return code === 1009 || (code >= 4400 && code <= 4499 && !PASSING.has(code));
}

/** One link to the server, kept up until it is closed or refused. */
export class Connection {
  /** @type {ConnectionState} */
  state = "connecting";
  /** @type {ConnectionInfo} */
  info = {};

  #url;
  #token;
  #WebSocket;
  #onFrame;
  #onState;
  /** @type {Attempt | null} null: waiting for the next one, or ended */
  #attempt = null;
  #tries = 0;
  #expired = false;
  #heartbeatSeconds = 20;
  /** @type {ReturnType<typeof setTimeout> | undefined} the end of a wait, or of the patience */
  #timer;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #settled;

  /**
   * @param {object} options
   * @param {string} options.url
   * @param {import("./realtime.js").ConnectOptions["token"]} options.token
   * @param {NonNullable<import("./realtime.js").ConnectOptions["WebSocket"]>} options.WebSocket
   * @param {(frame: any) => void} options.onFrame
   * @param {() => void} options.onState after `state` has changed
   */
  constructor({ url, token, WebSocket, onFrame, onState }) {
    this.#url = url;
    this.#token = token;
    this.#WebSocket = WebSocket;
    this.#onFrame = onFrame;
    this.#onState = onState;
  }

  async open() {
    /** @type {Attempt} */
    const attempt = { socket: null, welcomed: false, refreshed: this.#expired };
    this.#attempt = attempt;
    this.#expect(WELCOME_SECONDS);
    try {
      const token = await this.#token?.({ expired: this.#expired });
      if (attempt !== this.#attempt) return;
      const socket = new this.#WebSocket(this.#url, SUBPROTOCOL);
      attempt.socket = socket;
      socket.onopen = () => {
        if (token && attempt === this.#attempt) socket.send(JSON.stringify({ op: "auth", token }));
      };
      socket.onmessage = ({ data }) => {
        if (attempt === this.#attempt) this.#hear(attempt, data);
      };
      socket.onclose = ({ code, reason }) => {
        if (attempt === this.#attempt) this.#end(attempt, code, reason);
      };
    } catch (error) {
      if (attempt === this.#attempt) this.#lose({ reason: String(error) });
    }
  }

  /**
   * Send a frame if the server has welcomed us.
   *
   * @param {object} frame
   */
  send(frame) {
    if (this.#attempt?.welcomed) this.#attempt.socket?.send(JSON.stringify(frame));
  }

  /** The network or the page is back: try at once, or see whether the link is still alive. */
  wake() {
    if (this.state === "reconnecting" && this.#attempt === null) {
      this.#tries = 0;
      this.open();
    } else if (this.#attempt?.welcomed) {
      this.send({ op: "ping" });
      this.#expect(PROBE_SECONDS);
    }
  }

  close() {
    this.#drop();
    this.#become("closed");
  }

  /**
   * @param {Attempt} attempt
   * @param {unknown} data
   */
  #hear(attempt, data) {
    let frame;
    try {
      frame = JSON.parse(String(data));
    } catch {
      return;
    }
    if (frame?.op === "welcome") {
      attempt.welcomed = true;
      this.#expired = false;
      this.#heartbeatSeconds = frame.heartbeat_seconds || this.#heartbeatSeconds;
      this.#settled = setTimeout(() => (this.#tries = 0), SETTLED_SECONDS * 1000);
      this.#become("live");
    }
    if (attempt.welcomed) this.#expect(SILENT_HEARTBEATS * this.#heartbeatSeconds);
    if (frame?.op === "degraded") this.#become("degraded", { since: frame.since });
    if (frame?.op === "restored") this.#become("live");
    if (frame?.op === "bye") this.#leave(frame.reconnect_seconds);
    else if (frame) this.#onFrame(frame);
  }

  /**
   * @param {Attempt} attempt
   * @param {number} code
   * @param {string} reason
   */
  #end(attempt, code, reason) {
    const isExpired = code === 4402;
    // A credential that is refused as expired right after a refresh was not refreshed.
    if (isFinal(code) || (isExpired && attempt.refreshed && !attempt.welcomed)) {
      this.#drop();
      this.#become("denied", { code, reason });
    } else {
      this.#expired ||= isExpired;
      this.#lose({ code, reason });
    }
  }

  /** @param {ConnectionInfo} info */
  #lose(info) {
    this.#wait(backoffSeconds(this.#tries++, Math.random()), info);
  }

  /** @param {unknown} seconds already spread over the clients by the server */
  #leave(seconds) {
    const info = { reason: "bye" };
    if (typeof seconds === "number" && seconds >= 0) this.#wait(seconds, info);
    else this.#lose(info);
  }

  /**
   * @param {number} seconds
   * @param {ConnectionInfo} info
   */
  #wait(seconds, info) {
    this.#drop();
    this.#timer = setTimeout(() => this.open(), seconds * 1000);
    this.#become("reconnecting", info);
  }

  /**
   * Something must be heard within so many seconds.
   *
   * @param {number} seconds
   */
  #expect(seconds) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#lose({ reason: "silent" }), seconds * 1000);
  }

  #drop() {
    clearTimeout(this.#timer);
    clearTimeout(this.#settled);
    const socket = this.#attempt?.socket;
    this.#attempt = null;
    socket?.close();
  }

  /**
   * @param {ConnectionState} state
   * @param {ConnectionInfo} info
   */
  #become(state, info = {}) {
    if (state === this.state) return;
    this.state = state;
    this.info = info;
    this.#onState();
  }
}
