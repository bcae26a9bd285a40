import { call } from "./api.js";
import { ConnectionStatus } from "./connection-status.js";
import { byId, setText } from "./dom.js";
import { Faults } from "./faults.js";
import { JobList } from "./job-list.js";
import { LiveUpdates } from "./live.js";

const POLL_MILLISECONDS = 2000;
const PAINT_MILLISECONDS = 500;
const UNSENT_MILLISECONDS = 3000;

/** The page of a logged-in user, from the login to the logout. */
export class Session {
  #status = new ConnectionStatus();
  #jobs;
  #live;
  #faults;
  #library;
  /** @type {ReturnType<typeof setInterval>[]} cleared by `end` */
  #timers;

  /**
   * @param {{ name: string, feed: string }} user
   * @param {import("./library.js").Library} library
   * @param {import("./search.js").Search} search
   */
  constructor(user, library, search) {
    this.#library = library;
    this.#jobs = new JobList(this.#status, {
      onOpen: (card) => this.#live.watchJob(card),
      onClose: (card) => this.#live.unwatchJob(card),
      onEnd: () => {
        library.refresh().catch(console.warn);
        search.refresh();
      },
    });
    this.#faults = new Faults(() => this.#jobs.openCards.map((card) => card.job.topic));
    this.#live = new LiveUpdates(this.#status, this.#jobs, library, this.#faults.count);
    this.#timers = [
      setInterval(() => this.#poll(), POLL_MILLISECONDS),
      setInterval(() => this.#jobs.paint(), PAINT_MILLISECONDS),
      setInterval(() => this.#faults.paint(), PAINT_MILLISECONDS),
      setInterval(() => this.#status.showUnsent(), UNSENT_MILLISECONDS),
    ];
    setText(byId("who"), user.name);
    library.refresh().catch(console.warn);
    this.#faults.load();
    this.#connect(user.feed);
  }

  /** @param {object} choice of documents */
  startJob(choice) {
    return this.#jobs.start(choice);
  }

  end() {
    for (const timer of this.#timers) clearInterval(timer);
    this.#live.close();
    this.#faults.close();
    this.#jobs.close();
    // The next user of this tab must not find the states of this one.
    sessionStorage.clear();
  }

  /** @param {string} feed */
  async #connect(feed) {
    await Promise.all([this.#live.load(), this.#jobs.refresh().catch(console.warn)]);
    this.#live.connect(feed, {
      token: renewCookie,
      onState: (state, since) => this.#handleState(state, since),
    });
  }

  /** @param {string} state @param {string} [since] */
  #handleState(state, since) {
    const isBack = state === "live" && this.#status.state !== "connecting";
    this.#status.show(state, since);
    this.#faults.noteState(state);
    this.#jobs.paintSoon();
    if (isBack) {
      // The log does not have everything that the host stores, for example uploads.
      this.#jobs.refresh().catch(console.warn);
      this.#library.refresh().catch(console.warn);
    }
    // Logs the user out if the cookie has expired.
    if (state === "denied") call("GET", "/me").catch(() => {});
  }

  #poll() {
    if (!this.#status.isConnected && !document.hidden) this.#jobs.refresh().catch(() => {});
  }
}

/** The cookie is the credential: the host renews it when it is asked for the user. */
async function renewCookie() {
  await call("GET", "/me").catch(() => {});
  return null;
}
