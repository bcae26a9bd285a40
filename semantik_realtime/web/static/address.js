/** The server's WebSocket where this client is not served by the server: in a bundle, in node. */
const DEFAULT_URL = "/realtime/ws";

// The server serves the client at `<base>/static/`, and its WebSocket at `<base>/ws`. A bundle has
// another file name; a development server of a bundler serves the package's own folder.
const SERVED = /^(https?:\/\/[^?#]*)\/static\/address\.js(?:[?#]|$)/;
const SOURCE = /\/(?:node_modules|semantik_realtime\/web)\//;

/**
 * Return the address of the server's WebSocket.
 *
 * @param {string | undefined} url absolute, or relative to the page; undefined: that of the server
 *   from which the client was loaded, under whatever prefix it is
 * @param {string} module where this module was loaded from
 */
export function socketAddress(url, module = import.meta.url) {
  const [, base] = SERVED.exec(module) ?? [];
  const served = base && !SOURCE.test(module) ? `${base}/ws` : DEFAULT_URL;
  const address = new URL(url ?? served, globalThis.location?.href);
  address.protocol = address.protocol.replace(/^http/, "ws");
  return address.href;
}
