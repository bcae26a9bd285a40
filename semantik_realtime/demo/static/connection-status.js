import { announce, byId, setText } from "./dom.js";
import { clockText, plural } from "./text.js";

const HEALTH = "/realtime/health";
const STATE_TEXT = {
  connecting: "connecting",
  live: "live",
  idle: "up to date",
  reconnecting: "reconnecting",
  degraded: "delayed",
  denied: "refused",
  closed: "offline",
  polling: "not live",
};

/** The badge that shows the state of the connection, and the banner of an outage. */
export class ConnectionStatus {
  /** A state of the realtime client, or `polling`: the host has no realtime plugin. */
  state = "connecting";

  get isDegraded() {
    return this.state === "degraded";
  }

  /** Whether the server sends updates: live ones, or during an outage the database's record. */
  get isConnected() {
    return this.state === "live" || this.isDegraded;
  }

  /** @param {string} state @param {string} [since] when the outage began, RFC 3339 */
  show(state, since) {
    const wasDegraded = this.isDegraded;
    this.state = state;
    const badge = byId("connection");
    badge.dataset.state = state;
    setText(badge.lastElementChild, STATE_TEXT[/** @type {"live"} */ (state)] ?? state);
    byId("away").hidden = !this.isDegraded;
    if (!wasDegraded) setText(byId("away-unsent"), "");
    if (since) {
      setText(byId("away-title"), `No live updates since ${clockText(since)}.`);
      announce(byId("away").textContent.trim());
    } else if (wasDegraded && state === "live") {
      announce("Live updates are back.");
    }
    this.showUnsent();
  }

  /** During an outage, show how many events the web server has in its spool. */
  async showUnsent() {
    if (!this.isDegraded || document.hidden) return;
    // Not `response.ok`: a server that is not ready answers 503 with the same members.
    const response = await fetch(HEALTH).catch(() => null);
    const health = await response?.json().catch(() => null);
    const count = health?.spool?.drafts ?? 0;
    if (!this.isDegraded) return;
    setText(byId("away-unsent"), count ? `${plural(count, "event")} not sent yet.` : "");
  }
}
