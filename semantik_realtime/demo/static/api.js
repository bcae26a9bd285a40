/** An answer that is not 2xx; `message` is for people. */
export class Refused extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let onLoggedOut = () => {};

/** @param {() => void} listener called when the session has ended */
export function whenLoggedOut(listener) {
  onLoggedOut = listener;
}

/**
 * Ask the host; the cookie says who we are.
 *
 * @param {string} method
 * @param {string} path below `/api`
 * @param {object | FormData} [body]
 * @returns {Promise<any>} the answer's JSON
 */
export async function call(method, path, body) {
  /** @type {RequestInit & { headers: Record<string, string> }} */
  const request = { method, headers: { "X-Requested-With": "page" } };
  if (body instanceof FormData) {
    request.body = body;
  } else if (body) {
    request.body = JSON.stringify(body);
    request.headers["Content-Type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(`/api${path}`, request);
  } catch {
    throw new Refused(0, "The server does not answer.");
  }
  const content = answer.status === 204 ? null : await answer.json().catch(() => null);
  if (answer.ok) return content;
  if (answer.status === 401 && path !== "/login") onLoggedOut();
  const detail = typeof content?.detail === "string" ? content.detail : answer.statusText;
  throw new Refused(answer.status, detail);
}
