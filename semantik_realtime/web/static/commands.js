import { topicName } from "./protocol.js";

/** Sends the requests that change a job, to the server of the WebSocket. */
export class Commands {
  #base;
  #token;

  /**
   * @param {string} address of the server's WebSocket
   * @param {import("./realtime.js").ConnectOptions["token"]} token
   */
  constructor(address, token) {
    this.#base = address.replace(/^ws/, "http").replace(/\/[^/]*$/, "");
    this.#token = token;
  }

  /**
   * @param {string} asked the job's topic
   * @param {"cancel" | "retry"} command
   * @returns {Promise<any>} the server's answer
   */
  async send(asked, command) {
    const name = topicName(asked);
    if (!name?.startsWith("job:")) throw new TypeError(`not a job: ${JSON.stringify(asked)}`);
    const url = `${this.#base}/jobs/${encodeURIComponent(name.slice(4))}/${command}`;
    let answer = await this.#post(url, false);
    if (answer.status === 401 && this.#token) answer = await this.#post(url, true);
    const body = await answer.json().catch(() => ({}));
    if (answer.ok) return body;
    const { code = "http_error", message = `HTTP ${answer.status}` } = body;
    throw Object.assign(new Error(message), { code, status: answer.status });
  }

  /**
   * @param {string} url
   * @param {boolean} expired whether the server has refused the last token
   */
  async #post(url, expired) {
    const token = await this.#token?.({ expired });
    /** @type {Record<string, string>} */
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    // Without a token the server goes by the cookie, as for the socket.
    const credentials = token ? "same-origin" : "include";
    return await fetch(url, { method: "POST", headers, credentials });
  }
}
