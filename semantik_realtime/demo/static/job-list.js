import { call } from "./api.js";
import { announce, byId, oncePerFrame, setText } from "./dom.js";
import { JobCard } from "./job-card.js";
import { hasEnded } from "./job-state.js";
import { errorText, plural } from "./text.js";

/** @typedef {import("./job-card.js").HostJob} HostJob */

/** The user's jobs on the page, each as a card. */
export class JobList {
  /** @type {Map<string, JobCard>} by id, in the order in which they were added */
  #cards = new Map();
  #status;
  #callbacks;
  /** The server's clock minus the browser's, in seconds. */
  #clockSkewSeconds = 0;
  /** Whether the host has answered with the list of jobs. */
  #isLoaded = false;
  #isRefreshing = false;
  #isClosed = false;
  /** @type {Set<string>} ids of jobs that were announced, or had ended when the page was loaded */
  #announced = new Set();
  /** @type {Set<string>} ids in the feed that were unknown and caused a refresh */
  #requested = new Set();
  /** Paint everything in the next animation frame. */
  paintSoon = oncePerFrame(() => this.paint());

  /**
   * @param {import("./connection-status.js").ConnectionStatus} status
   * @param {{ onOpen: (card: JobCard) => void, onClose: (card: JobCard) => void,
   *   onEnd: () => void }} callbacks `onEnd`: a job has ended
   */
  constructor(status, callbacks) {
    this.#status = status;
    this.#callbacks = callbacks;
  }

  get openCards() {
    return [...this.#cards.values()].filter((card) => card.isOpen);
  }

  /** The server's time, in seconds. */
  get now() {
    return Date.now() / 1000 + this.#clockSkewSeconds;
  }

  /** Remove all cards; a refresh that is still running adds none. */
  close() {
    this.#isClosed = true;
    for (const card of this.#cards.values()) card.element.remove();
    this.#cards.clear();
  }

  /** @param {object} choice of documents */
  async start(choice) {
    const job = await call("POST", "/jobs", choice);
    this.#setOpen(this.#update(job, true), true);
    this.paint();
  }

  /** Load the jobs from the host; while a refresh is running, do nothing. */
  async refresh() {
    if (this.#isRefreshing) return;
    this.#isRefreshing = true;
    try {
      const { jobs, now } = await call("GET", "/jobs");
      if (this.#isClosed) return;
      this.#clockSkewSeconds = (Date.parse(now) - Date.now()) / 1000;
      const ids = new Set(jobs.map((/** @type {HostJob} */ { id }) => id));
      for (const id of this.#cards.keys()) if (!ids.has(id)) this.remove(id);
      for (const job of [...jobs].reverse()) this.#update(job);
      if (!this.#isLoaded) this.#openFirst();
      this.#isLoaded = true;
    } finally {
      this.#isRefreshing = false;
    }
    this.paint();
  }

  /** Open the job in the URL, or else a running one. */
  #openFirst() {
    const cards = [...this.#cards.values()];
    const linked = this.#cards.get(location.hash.slice(1));
    const card = linked ?? cards.find(({ state }) => !hasEnded(state));
    if (card) this.#setOpen(card, true);
    for (const { job, state } of cards) if (hasEnded(state)) this.#announced.add(job.id);
  }

  /**
   * Update the card of a job, or add one.
   *
   * @param {HostJob} job
   * @param {boolean} isNew
   */
  #update(job, isNew = false) {
    let card = this.#cards.get(job.id);
    if (card) {
      card.updateJob(job);
      return card;
    }
    card = new JobCard(job, this.now, {
      toggle: (card) => this.#setOpen(card, !card.isOpen),
      cancel: (card) => this.#request(card, "POST", "/cancel"),
      resume: (card) => this.#request(card, "POST", "/rest"),
      remove: (card) => this.#request(card, "DELETE", ""),
    });
    if (isNew || this.#isLoaded) card.element.classList.add("arriving");
    this.#cards.set(job.id, card);
    byId("jobs").prepend(card.element);
    return card;
  }

  /** @param {JobCard} card @param {string} method @param {string} path */
  async #request(card, method, path) {
    try {
      const job = await call(method, `/jobs/${card.job.id}${path}`);
      if (job) this.#update(job);
      else this.remove(card.job.id);
    } catch (error) {
      card.showError(errorText(error));
      return;
    }
    this.paint();
    this.#status.showUnsent();
  }

  /** @param {string} id */
  remove(id) {
    const card = this.#cards.get(id);
    if (!card) return;
    const hadFocus = card.element.contains(document.activeElement);
    this.#callbacks.onClose(card);
    card.element.remove();
    this.#cards.delete(id);
    if (hadFocus) byId("start-all").focus();
    this.paintSoon();
  }

  /** @param {any} view of the user's feed */
  readFeed(view) {
    for (const card of this.#cards.values()) card.readView("feed", view, this.now);
    for (const [id, state] of view.states) {
      if (this.#cards.has(id) || this.#requested.has(id) || hasEnded(state)) continue;
      this.#requested.add(id);
      this.refresh().catch(console.warn);
    }
    this.paintSoon();
  }

  /** @param {JobCard} card @param {boolean} isOpen */
  #setOpen(card, isOpen) {
    card.setOpen(isOpen);
    const url = isOpen ? `#${card.job.id}` : location.pathname;
    if (isOpen || location.hash.slice(1) === card.job.id) history.replaceState(null, "", url);
    if (isOpen) this.#loadFailures(card);
    if (isOpen) this.#callbacks.onOpen(card);
    else this.#callbacks.onClose(card);
    this.paintSoon();
  }

  /** @param {JobCard} card */
  async #loadFailures(card) {
    try {
      const { failures } = await call("GET", `/jobs/${card.job.id}`);
      for (const { file, reason } of failures) card.addFailure(file, reason);
      this.paintSoon();
    } catch {
      // The card shows the number of failures without the list.
    }
  }

  paint() {
    let running = 0;
    for (const card of this.#cards.values()) {
      card.paint(this.now, this.#status.isDegraded);
      if (!hasEnded(card.state)) running += 1;
      else if (this.#isLoaded) this.#announceEnd(card);
    }
    const count = this.#cards.size;
    byId("jobs-empty").hidden = !this.#isLoaded || count > 0;
    const summary = running ? `${running} running` : count ? plural(count, "job") : "";
    setText(byId("jobs-summary"), summary);
    document.title = running ? `(${running}) Semantik` : "Semantik";
  }

  /** @param {JobCard} card */
  #announceEnd(card) {
    if (this.#announced.has(card.job.id)) return;
    this.#announced.add(card.job.id);
    announce(card.spokenStatus);
    this.#loadFailures(card);
    this.#callbacks.onEnd();
  }
}
