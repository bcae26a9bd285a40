import { askFirst, h, setText } from "./dom.js";
import { EventLog } from "./event-log.js";
import { done, furthest, hasEnded, percent, total } from "./job-state.js";
import { Pace } from "./pace.js";
import { agoText, durationText, failureText, leftText, plural, rateText, silenceText } from "./text.js";

/**
 * @typedef {import("./job-state.js").State} State
 * @typedef {{ id: string, topic: string, label: string, cancel_requested: boolean, state: State,
 *   failures?: { file: string, reason: string }[] }} HostJob
 *
 * @typedef {object} TopicState the job's state in one topic
 * @property {State | null} state null: the topic is not watched, or has no state of the job
 * @property {boolean} isRecord whether the state is the database's record, not from the log
 */

const STATUS_TEXT = {
  queued: "Waiting",
  running: "Running",
  retrying: "Retrying",
  completed: "Done",
  failed: "Failed",
  cancelling: "Cancelling",
  cancelled: "Cancelled",
  lost: "Lost",
};

/** @type {TopicState} */
const NO_STATE = { state: null, isRecord: false };

/** One job on the page: a head with a bar, and details that can be opened. */
export class JobCard {
  isOpen = false;
  log = new EventLog();

  #job;
  /** `feed`: the user's feed; `topic`: the job's own topic, watched while the card is open. */
  #states = { feed: NO_STATE, topic: NO_STATE };
  /** When a topic last changed the state, in seconds of the server's clock. */
  #changedAt;
  /** Whether live updates are away; set by `paint`. */
  #isDegraded = false;
  #pace = new Pace();
  /** The attempt whose pace is measured. @type {unknown} */
  #measuredAttempt = null;
  /** What `paint` painted last, as a key to skip equal work; empty: paint everything. */
  #painted = "";
  /** The attempt after which the rest was requested, until the request fails. @type {unknown} */
  #resumedAttempt = null;
  /** @type {Map<string, string>} reason by file */
  #failedFiles = new Map();

  /**
   * @param {HostJob} job
   * @param {number} now the server's time, in seconds
   * @param {{ toggle: (card: JobCard) => void, cancel: (card: JobCard) => void,
   *   resume: (card: JobCard) => void, remove: (card: JobCard) => void }} actions of the buttons
   */
  constructor(job, now, actions) {
    this.#job = job;
    this.#changedAt = now;
    const detailId = `detail-${job.id}`;
    this.label = h("span", { class: "job-label" });
    this.when = h("span", { class: "job-when muted small" });
    this.pill = h("span", { class: "pill" });
    this.head = h(
      "button",
      { class: "job-head", "aria-expanded": "false", "aria-controls": detailId,
        onclick: () => actions.toggle(this) },
      h("span", { class: "job-title" }, this.label, this.when),
      this.pill,
      h("i", { class: "chevron", "aria-hidden": "true" }),
    );
    this.fill = h("div", { class: "bar-fill" });
    this.bar = h(
      "div",
      { class: "bar", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100,
        "data-testid": "bar" },
      this.fill,
    );
    this.amount = h("span", { "data-testid": "amount" });
    this.failed = h("span", { class: "bad" });
    this.speed = h("span", { class: "muted", "data-testid": "rate" });
    this.left = h("span", { class: "left", "data-testid": "left" });
    this.current = h("p", { class: "current muted small" });
    this.error = h("p", { class: "error", "data-testid": "job-error" });
    this.counts = h("dl", { class: "counts" });
    this.failures = h("ul", { class: "failures" });
    this.failureBox = h(
      "details", { class: "failure-box", "data-testid": "failures" },
      h("summary"), this.failures,
    );
    this.cancelButton = h(
      "button",
      { class: "secondary", "data-testid": "cancel", onclick: () => actions.cancel(this) },
      "Cancel",
    );
    this.restButton = h(
      "button",
      { class: "secondary", "data-testid": "rest", hidden: true,
        onclick: () => this.#resume(actions.resume) },
      "Index the rest",
    );
    this.removeButton = h(
      "button", { class: "quiet", "data-testid": "delete",
        onclick: askFirst("Really delete this job?", () => actions.remove(this)) },
      "Delete",
    );
    this.detail = h(
      "div", { class: "job-detail", id: detailId, hidden: true },
      this.current, this.error, this.counts, this.failureBox, this.log.element,
      h("div", { class: "job-actions" }, this.cancelButton, this.restButton, this.removeButton),
    );
    this.element = h(
      "article",
      { class: "job", "data-testid": "job", "data-job-id": job.id, "aria-label": job.label },
      this.head, this.bar,
      h("p", { class: "job-line small" }, this.amount, this.failed, this.speed, this.left),
      this.detail,
    );
  }

  /** The host's record of the job. */
  get job() {
    return this.#job;
  }

  /** @param {HostJob} job a newer record of the same job */
  updateJob(job) {
    this.#job = { ...this.#job, ...job };
  }

  /** The furthest of the states that the topics and the host have. */
  get state() {
    const { topic, feed } = this.#states;
    return /** @type {State} */ (furthest([topic.state, feed.state, this.#job.state]));
  }

  /** Whether the shown state is the database's record and the log has not confirmed it. */
  get #isProvisional() {
    const { state } = this;
    const { topic, feed } = this.#states;
    const source = [topic, feed].find((each) => each.state === state);
    return source?.isRecord || (this.#isDegraded && (!source || !hasEnded(state)));
  }

  /**
   * Read the job's state in the view of a topic.
   *
   * @param {"topic" | "feed"} source
   * @param {{ states: ReadonlyMap<string, any>, overlay: ReadonlyMap<string, any> }} view
   * @param {number} now the server's time, in seconds
   */
  readView(source, { states, overlay }, now) {
    const { id } = this.#job;
    const before = this.#states[source].state;
    // A log that was lost has no state of the job; the state from before is still true.
    const state = states.get(id) ?? before;
    if (state !== before) this.#changedAt = now;
    this.#states[source] = { state, isRecord: overlay.has(id) };
  }

  /** Forget the state from the job's own topic, which is no longer watched. */
  forgetTopic() {
    this.#states.topic = NO_STATE;
  }

  /** @param {(card: JobCard) => void} resume */
  #resume(resume) {
    this.#resumedAttempt = this.state.attempt;
    this.restButton.toggleAttribute("disabled", true);
    resume(this);
  }

  /** @param {string} text */
  showError(text) {
    setText(this.error, text);
    this.#resumedAttempt = null;
    this.restButton.toggleAttribute("disabled", false);
  }

  /** @param {boolean} isOpen whether to show the details */
  setOpen(isOpen) {
    this.isOpen = isOpen;
    this.head.setAttribute("aria-expanded", String(isOpen));
    this.detail.hidden = !isOpen;
    this.element.classList.toggle("open", isOpen);
    this.#painted = "";
  }

  /** @param {string} file @param {string} reason */
  addFailure(file, reason) {
    if (this.#failedFiles.get(file) === reason) return;
    this.#failedFiles.set(file, reason);
    this.#painted = "";
    this.failures.append(
      h("li", {}, h("span", { class: "file" }, file), h("span", { class: "muted" }, reason)),
    );
  }

  /**
   * Paint what has changed.
   *
   * @param {number} now the server's time, in seconds
   * @param {boolean} isDegraded whether live updates are away
   */
  paint(now, isDegraded) {
    this.#isDegraded = isDegraded;
    const { state } = this;
    this.#measure(state, now);
    const { label, cancel_requested } = this.#job;
    const key = JSON.stringify([state, label, cancel_requested, this.isOpen, this.#isProvisional]);
    if (key !== this.#painted) {
      this.#painted = key;
      this.#paintState(state);
    }
    this.#paintTimes(state, now);
  }

  /** @param {State} state @param {number} now */
  #measure(state, now) {
    if (state.status !== "running") return;
    const { attempt = 1 } = state;
    if (attempt !== this.#measuredAttempt) this.#pace = new Pace();
    this.#measuredAttempt = attempt;
    const startedAt = attempt > 1 ? null : seconds(state.started_at);
    if (!this.#pace.isStarted && startedAt !== null) this.#pace.start(Math.min(startedAt, now));
    this.#pace.add(now, done(state));
  }

  /** @param {State} state */
  #paintState(state) {
    const job = this.#job;
    const isStopping = job.cancel_requested && !hasEnded(state);
    const fields = state.fields ?? {};
    const unit = state.progress?.unit || "files";
    const all = total(state);
    const share = percent(state);

    this.element.dataset.status = state.status;
    this.element.toggleAttribute("data-provisional", this.#isProvisional);
    setText(this.label, job.label);
    const status = STATUS_TEXT[/** @type {"queued"} */ (state.status)] ?? state.status;
    setText(this.pill, isStopping ? "Stopping" : status);

    this.bar.setAttribute("aria-label", `Progress of ${job.label}`);
    this.bar.classList.toggle("unknown", share === null);
    if (share === null) this.bar.removeAttribute("aria-valuenow");
    else this.bar.setAttribute("aria-valuenow", String(share));
    this.bar.setAttribute("aria-valuetext", `${done(state)} of ${all ?? "?"} ${unit}, ${status}`);
    const exact = share === 100 ? 1 : all ? Math.min(1, done(state) / all) : 0;
    this.fill.style.transform = `translateX(${100 * (share === null ? 0.35 : exact) - 100}%)`;

    const isOver = hasEnded(state) && done(state) === all;
    setText(this.amount, isOver ? plural(all ?? 0, unit.replace(/s$/, ""))
      : `${done(state).toLocaleString("en")} of ${(all ?? "?").toLocaleString("en")} ${unit}`);
    const failed = fields.failed_files ?? 0;
    setText(this.failed, failed ? `${failed.toLocaleString("en")} failed` : "");
    setText(this.error, failureText(state));
    setText(this.current, !hasEnded(state) && fields.current_file
      ? `Reading ${fields.current_file}` : "");

    this.cancelButton.hidden = hasEnded(state);
    this.removeButton.hidden = !hasEnded(state);
    const hasRest = state.status === "failed" || state.status === "lost";
    this.restButton.hidden = !hasRest || (all !== null && done(state) >= all);
    this.restButton.toggleAttribute("disabled", this.#resumedAttempt === state.attempt);
    this.cancelButton.toggleAttribute("disabled", isStopping);
    this.#paintCounts([
      ["Indexed", fields.processed_files],
      ["Failed", fields.failed_files],
      ["Passages", fields.chunks],
      ["Attempt", (state.attempt ?? 0) > 1 ? state.attempt : undefined],
    ]);
    this.failureBox.hidden = this.#failedFiles.size === 0;
    setText(/** @type {Element} */ (this.failureBox.firstElementChild),
      `${plural(this.#failedFiles.size, "file")} could not be indexed`);
  }

  /** @param {[string, number | undefined][]} counts */
  #paintCounts(counts) {
    const known = counts.filter(([, count]) => count !== undefined && count !== null);
    this.counts.replaceChildren(
      ...known.map(([name, count]) =>
        h("div", {}, h("dt", {}, name), h("dd", {}, Number(count).toLocaleString("en")))),
    );
  }

  /** @param {State} state @param {number} now */
  #paintTimes(state, now) {
    const startedAt = seconds(state.started_at);
    const endedAt = seconds(state.ended_at);
    const queuedAt = seconds(this.#job.state.queued_at ?? state.queued_at);
    setText(this.when, queuedAt === null ? "" : agoText(now - queuedAt));
    const unit = state.progress?.unit || "files";
    const silence = this.#pace.silence(now);
    let speed = "";
    let left = "";
    if (this.#isProvisional && !hasEnded(state)) {
      // The database's record arrives every few seconds: too rarely for a rate.
      left = `as of ${Math.max(1, Math.round(now - this.#changedAt))} s ago`;
    } else if (state.status === "running" && silence !== null) {
      left = silenceText(silence);
    } else if (state.status === "running") {
      const rate = this.#pace.rate(now);
      if (rate) speed = rateText(rate, unit);
      const all = total(state);
      const wait = all ? this.#pace.secondsLeft(now, all - done(state)) : null;
      if (wait !== null) left = leftText(wait);
    } else if (hasEnded(state) && startedAt !== null && endedAt !== null) {
      speed = `in ${durationText(Math.max(0, endedAt - startedAt))}`;
    }
    setText(this.speed, speed);
    setText(this.left, left);
  }

  /** The job's status as a sentence for screen readers. */
  get spokenStatus() {
    const fields = this.state.fields ?? {};
    const status = STATUS_TEXT[/** @type {"queued"} */ (this.state.status)] ?? this.state.status;
    return `${this.#job.label}: ${status}. ${plural(fields.processed_files ?? 0, "file")} indexed` +
      `${fields.failed_files ? `, ${fields.failed_files} failed` : ""}.`;
  }
}

/** @param {string | null | undefined} time @returns {number | null} */
function seconds(time) {
  const milliseconds = time ? Date.parse(time) : NaN;
  return Number.isNaN(milliseconds) ? null : milliseconds / 1000;
}
