import { call, whenLoggedOut } from "./api.js";
import { byId, plural, setText } from "./dom.js";
import { JobCard } from "./jobs.js";
import { Library, sentence } from "./library.js";
import { Search } from "./search.js";
import { hasEnded } from "./state.js";

const REALTIME = "/realtime/static/realtime.js";
const POLL_MILLISECONDS = 2000;
const TICK_MILLISECONDS = 500;
const HEALTH = "/realtime/health";
const HEALTH_MILLISECONDS = 3000;
const HISTORY = 200;

const CONNECTION_TEXT = {
  connecting: "connecting",
  live: "live",
  reconnecting: "reconnecting",
  degraded: "delayed",
  denied: "refused",
  closed: "offline",
  polling: "not live",
};

/** @typedef {import("./jobs.js").HostJob} HostJob */

/** Everything between a login and a logout. */
class Session {
  /** @type {Map<string, JobCard>} newest first */
  #cards = new Map();
  /** @type {any} the realtime client; null: not there */
  #realtime = null;
  #connection = "connecting";
  /** The server's clock minus ours, in seconds. */
  #skewSeconds = 0;
  #isListed = false;
  #isListing = false;
  /** @type {Set<string>} jobs whose end has been told */
  #told = new Set();
  /** @type {Set<string>} jobs of the feed that the host has been asked about */
  #asked = new Set();
  /** @type {ReturnType<typeof setInterval>[]} */
  #timers = [];
  #isDue = false;

  /** @param {{ id: number, name: string, feed: string }} user */
  constructor(user) {
    this.user = user;
    setText(byId("who"), user.name);
    this.library = library;
    library.refresh().catch(report);
    this.#timers = [
      setInterval(() => this.#poll(), POLL_MILLISECONDS),
      setInterval(() => this.#paint(), TICK_MILLISECONDS),
      setInterval(() => this.#showWaiting(), HEALTH_MILLISECONDS),
    ];
    this.#begin();
  }

  async #begin() {
    const [client] = await Promise.all([
      import(REALTIME).catch(() => null),
      this.#list().catch(report),
    ]);
    if (session !== this) return;
    if (!client) return this.#showConnection("polling");
    this.#realtime = client.connect({
      url: "/realtime/ws",
      storage: sessionStorage,
      token: renew,
    });
    this.#realtime.onConnection((/** @type {string} */ state, /** @type {any} */ info) => {
      // What happened meanwhile is not all told again: not what the host itself keeps.
      if (state === "live" && this.#connection !== "connecting") this.#refresh();
      this.#showConnection(state, info?.since);
      if (state === "denied") call("GET", "/me").catch(() => {});
    });
    this.#realtime.watch(this.user.feed, {
      onChange: (/** @type {any} */ view) => this.#takeFeed(view),
      onEvent: (/** @type {any} */ event) => {
        if (event.type === "job_deleted") this.#drop(event.key);
      },
    });
    for (const card of this.#cards.values()) if (card.isOpen) this.#watch(card);
  }

  end() {
    for (const timer of this.#timers) clearInterval(timer);
    this.#realtime?.close();
    for (const card of this.#cards.values()) card.element.remove();
    this.#cards.clear();
    // What the next user of this tab must not find.
    sessionStorage.clear();
  }

  /** @param {object} choice */
  async start(choice) {
    const job = await call("POST", "/jobs", choice);
    const card = this.#take(job, true);
    this.#open(card, true);
    this.#paint();
  }

  /** Ask the host for the jobs: at the start, for unknown ones, and while nothing is live. */
  async #list() {
    if (this.#isListing) return;
    this.#isListing = true;
    try {
      const { jobs, now } = await call("GET", "/jobs");
      if (session !== this) return;
      this.#skewSeconds = (Date.parse(now) - Date.now()) / 1000;
      const ids = new Set(jobs.map(({ id }) => id));
      for (const id of this.#cards.keys()) if (!ids.has(id)) this.#drop(id);
      for (const job of [...jobs].reverse()) this.#take(job, false);
      if (!this.#isListed) this.#openFirst();
      this.#isListed = true;
    } finally {
      this.#isListing = false;
    }
    this.#paint();
  }

  #openFirst() {
    const asked = this.#cards.get(location.hash.slice(1));
    const running = [...this.#cards.values()].find(({ state }) => !hasEnded(state));
    const card = asked ?? running;
    if (card) this.#open(card, true);
    for (const { job, state } of this.#cards.values()) if (hasEnded(state)) this.#told.add(job.id);
  }

  #refresh() {
    this.#list().catch(report);
    this.library.refresh().catch(report);
  }

  #poll() {
    // While live updates are away the server tells the database's record by itself.
    const isTold = this.#connection === "live" || this.#connection === "degraded";
    if (!isTold && !document.hidden) this.#list().catch(() => {});
  }

  /**
   * @param {HostJob} job
   * @param {boolean} isNew
   */
  #take(job, isNew) {
    let card = this.#cards.get(job.id);
    if (card) {
      card.job = { ...card.job, ...job };
      return card;
    }
    card = new JobCard(job, {
      toggle: (card) => this.#open(card, !card.isOpen),
      cancel: (card) => this.#act(card, "POST", "/cancel"),
      remove: (card) => this.#act(card, "DELETE", ""),
    });
    card.heardAt = this.#now;
    if (isNew || this.#isListed) card.element.classList.add("arriving");
    this.#cards.set(job.id, card);
    byId("jobs").prepend(card.element);
    return card;
  }

  /** @param {JobCard} card @param {string} method @param {string} path */
  async #act(card, method, path) {
    try {
      const job = await call(method, `/jobs/${card.job.id}${path}`);
      if (job) this.#take(job, false);
      else this.#drop(card.job.id);
    } catch (error) {
      setText(card.error, sentence(error));
      return;
    }
    this.#paint();
    this.#showWaiting();
  }

  /** @param {string} id */
  #drop(id) {
    const card = this.#cards.get(id);
    if (!card) return;
    const hadFocus = card.element.contains(document.activeElement);
    card.stopHearing();
    card.element.remove();
    this.#cards.delete(id);
    if (hadFocus) byId("start-all").focus();
    this.#soon();
  }

  /** @param {any} view */
  #takeFeed(view) {
    for (const card of this.#cards.values()) card.hear("fed", view, this.#now);
    for (const [id, state] of view.states) {
      if (this.#cards.has(id) || this.#asked.has(id) || hasEnded(state)) continue;
      this.#asked.add(id);
      this.#list().catch(report);
    }
    this.#soon();
  }

  /** @param {JobCard} card @param {boolean} isOpen */
  #open(card, isOpen) {
    card.open(isOpen);
    const url = isOpen ? `#${card.job.id}` : location.pathname;
    if (isOpen || location.hash.slice(1) === card.job.id) history.replaceState(null, "", url);
    if (isOpen) this.#watch(card);
    else card.stopHearing();
    this.#soon();
  }

  /** @param {JobCard} card */
  #watch(card) {
    const { id, topic } = card.job;
    this.#loadFailures(card);
    if (!this.#realtime) {
      card.log.explain("Events are shown live where the realtime plugin is installed.");
      return;
    }
    if (card.subscription) return;
    let isFirst = true;
    let newest = 0;
    card.log.clear();
    card.subscription = this.#realtime.watch(topic, {
      history: HISTORY,
      onChange: (/** @type {any} */ view) => {
        card.hear("watched", view, this.#now);
        const isAway = this.#connection === "degraded";
        card.log.explain(isAway ? "The events follow when live updates are back."
          : card.log.isEmpty ? "Nothing is kept of this job’s events any more." : "");
        // A resumed stream brings what is new; what was there before the reload is fetched.
        if (isFirst && !isAway) {
          isFirst = false;
          if (view.cursor && view.reason === null) loadHistory(card, view.offset);
        }
        this.#soon();
      },
      onEvent: (/** @type {any} */ event, /** @type {any} */ { replayed }) => {
        // Offsets that are given out again are those of another log: the old one is lost.
        if (event.offset <= newest) card.log.clear();
        newest = event.offset;
        card.log.add(event);
        this.#takeFile(card, event, replayed);
      },
      onDenied: (/** @type {any} */ { code }) => card.log.explain(
        code === "too_many_topics" ? "Too many jobs are open: close some to see this one’s events."
          : "This job’s events are not shown to you.",
      ),
      onGone: () => this.#drop(id),
    });
  }

  /** @param {JobCard} card @param {any} event @param {boolean} isReplayed */
  #takeFile(card, { type, data }, isReplayed) {
    if (type === "file_failed") card.addFailure(data.file, data.reason);
    if (isReplayed) return;
    if (type === "file_failed") {
      this.library.mark(data.file, { status: "failed", chunks: 0, error: data.reason });
    } else if (type === "file_completed") {
      this.library.mark(data.file, { status: "indexed", chunks: data.chunks, error: null });
    }
  }

  /** @param {JobCard} card */
  async #loadFailures(card) {
    try {
      const { failures } = await call("GET", `/jobs/${card.job.id}`);
      for (const { file, reason } of failures) card.addFailure(file, reason);
      this.#soon();
    } catch {
      // The card stays without the list; the count is there.
    }
  }

  /** Paint with the next frame, however much has happened until then. */
  #soon() {
    if (!this.#isDue) requestAnimationFrame(() => this.#paint());
    this.#isDue = true;
  }

  /** The server's time, in seconds. */
  get #now() {
    return Date.now() / 1000 + this.#skewSeconds;
  }

  #paint() {
    this.#isDue = false;
    const now = this.#now;
    let running = 0;
    for (const [id, card] of this.#cards) {
      card.isAway = this.#connection === "degraded";
      card.paint(now);
      if (!hasEnded(card.state)) running += 1;
      else if (!this.#told.has(id)) this.#tellEnd(id, card);
    }
    byId("jobs-empty").hidden = !this.#isListed || this.#cards.size > 0;
    setText(byId("jobs-summary"), running ? `${running} running`
      : this.#cards.size ? plural(this.#cards.size, "job") : "");
    document.title = running ? `(${running}) Semantik` : "Semantik";
  }

  /** @param {string} id @param {JobCard} card */
  #tellEnd(id, card) {
    if (!this.#isListed) return;
    this.#told.add(id);
    setText(byId("announcer"), card.spoken);
    this.library.refresh().catch(report);
    search.refresh();
    this.#loadFailures(card);
  }

  /** While live updates are away: how much of what this web server has to tell waits with it. */
  async #showWaiting() {
    if (this.#connection !== "degraded" || document.hidden) return;
    // It may call itself not ready, with a status that says so; its numbers are there all the same.
    const answer = await fetch(HEALTH).catch(() => null);
    const health = await answer?.json().catch(() => null);
    const count = health?.spool?.drafts ?? 0;
    if (session !== this || this.#connection !== "degraded") return;
    const waiting = plural(count, "event waits", "events wait");
    setText(byId("away-waiting"), count ? `${waiting} here.` : "");
  }

  /** @param {string} state @param {string} [since] when live updates went away */
  #showConnection(state, since) {
    const wasAway = this.#connection === "degraded";
    this.#connection = state;
    const badge = byId("connection");
    badge.dataset.state = state;
    setText(badge.lastElementChild, CONNECTION_TEXT[/** @type {"live"} */ (state)] ?? state);
    byId("away").hidden = state !== "degraded";
    if (!wasAway) setText(byId("away-waiting"), "");
    if (since) {
      const at = new Date(since).toLocaleTimeString("en-GB");
      setText(byId("away-title"), `No live updates since ${at}.`);
      setText(byId("announcer"), byId("away").textContent.trim());
    } else if (wasAway && state === "live") {
      setText(byId("announcer"), "Live updates are back.");
    }
    this.#showWaiting();
    this.#soon();
  }
}

/**
 * Fetch the newest events up to an offset.
 *
 * @param {JobCard} card
 * @param {number} offset
 */
async function loadHistory(card, offset) {
  const after = Math.max(0, offset - HISTORY);
  const path = `/realtime/jobs/${card.job.id}/history?after=${after}&limit=${HISTORY}`;
  const answer = await fetch(path).catch(() => null);
  const { events } = answer?.ok ? await answer.json() : { events: [] };
  for (const event of events) card.log.add(event);
}

/** The cookie is the credential; an expired one is renewed by asking who we are. */
async function renew() {
  await call("GET", "/me").catch(() => {});
  return null;
}

/** @param {unknown} error */
function report(error) {
  console.warn(error);
}

/** @type {Session | null} */
let session = null;
const search = new Search();
const library = new Library((choice) => session?.start(choice) ?? Promise.resolve());

/** @param {any} user null: nobody */
function show(user) {
  session?.end();
  byId("login").hidden = user !== null;
  byId("app").hidden = user === null;
  search.clear();
  session = null;
  if (user) session = new Session(user);
  else byId("username").focus();
}

byId("login-form").addEventListener("submit", async (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  setText(byId("login-error"), "");
  const [username, password] = [byId("username"), byId("password")];
  try {
    const { user } = await call("POST", "/login", {
      username: username.value,
      password: password.value,
    });
    password.value = "";
    show(user);
  } catch (error) {
    setText(byId("login-error"), sentence(error));
    password.select();
  }
});
byId("logout").addEventListener("click", async () => {
  await call("POST", "/logout").catch(report);
  show(null);
});
whenLoggedOut(() => session && show(null));

try {
  show((await call("GET", "/me")).user);
} catch (error) {
  show(null);
  if (/** @type {any} */ (error).status !== 401) setText(byId("login-error"), sentence(error));
}
