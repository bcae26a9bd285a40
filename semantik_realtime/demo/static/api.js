/** A response that is not 2xx, or no response (status 0); `message` is for people. */
export class ApiError extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let onLoggedOut = () => {};

/** @param {() => void} listener called after a response that says that the session has expired */
export function setLoggedOutListener(listener) {
  onLoggedOut = listener;
}

/**
 * Send a request to the host; the cookie identifies the user.
 *
 * @param {string} method
 * @param {string} path below `/api`
 * @param {object | FormData} [body]
 * @returns {Promise<any>} the JSON of the response
 * @throws {ApiError}
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
  let response;
  try {
    response = await fetch(`/api${path}`, request);
  } catch {
    throw new ApiError(0, "The server does not answer.");
  }
  const content = response.status === 204 ? null : await response.json().catch(() => null);
  if (response.ok) return content;
  if (response.status === 401 && path !== "/login") onLoggedOut();
  const detail = typeof content?.detail === "string" ? content.detail : response.statusText;
  throw new ApiError(response.status, detail);
}
