import { agoText, h, plural, setText } from "./dom.js";
import { EventLog } from "./events.js";
import { durationText, leftText, Pace, rateText } from "./pace.js";
import { done, furthest, hasEnded, percent, total } from "./state.js";

/**
 * @typedef {import("./state.js").State} State
 * @typedef {{ id: string, topic: string, label: string, cancel_requested: boolean, state: State,
 *   failures?: { file: string, reason: string }[] }} HostJob
 */

const STATUS_TEXT = {
  queued: "Waiting",
  running: "Running",
  retrying: "Retrying",
  completed: "Done",
  failed: "Failed",
  cancelled: "Cancelled",
  lost: "Lost",
};

/**
 * @typedef {object} Account what one topic says of the job
 * @property {State | null} state
 * @property {boolean} isRecord whether that is the database's record, not yet the log's word
 */

/** @type {Account} */
const SILENT = { state: null, isRecord: false };

/** One job on the page. */
export class JobCard {
  /** From the user's feed. */
  fed = SILENT;
  /** From the job's own topic, while the card is open. */
  watched = SILENT;
  /** When something new was last heard of the job, in seconds of the server's clock. */
  heardAt = 0;
  /** Whether live updates are away. */
  isAway = false;
  /** @type {{ close(): void } | null} */
  subscription = null;
  isOpen = false;

  #pace = new Pace();
  #painted = "";

  /**
   * @param {HostJob} job
   * @param {{ toggle: (card: JobCard) => void, cancel: (card: JobCard) => void,
   *   remove: (card: JobCard) => void }} act
   */
  constructor(job, act) {
    this.job = job;
    const detailId = `detail-${job.id}`;
    this.label = h("span", { class: "job-label" });
    this.when = h("span", { class: "job-when muted small" });
    this.pill = h("span", { class: "pill" });
    this.head = h(
      "button",
      { class: "job-head", "aria-expanded": "false", "aria-controls": detailId,
        onclick: () => act.toggle(this) },
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
    this.log = new EventLog();
    this.cancelButton = h(
      "button", { class: "secondary", "data-testid": "cancel", onclick: () => act.cancel(this) },
      "Cancel",
    );
    this.removeButton = h(
      "button", { class: "quiet", "data-testid": "delete", onclick: () => act.remove(this) },
      "Delete",
    );
    this.detail = h(
      "div", { class: "job-detail", id: detailId, hidden: true },
      this.current, this.error, this.counts, this.failureBox, this.log.element,
      h("div", { class: "job-actions" }, this.cancelButton, this.removeButton),
    );
    this.element = h(
      "article",
      { class: "job", "data-testid": "job", "data-job-id": job.id, "aria-label": job.label },
      this.head, this.bar,
      h("p", { class: "job-line small" }, this.amount, this.failed, this.speed, this.left),
      this.detail,
    );
    /** @type {Map<string, string>} reason by file */
    this.failedFiles = new Map();
  }

  /** The furthest of what is known. */
  get state() {
    const known = furthest([this.watched.state, this.fed.state, this.job.state]);
    return /** @type {State} */ (known);
  }

  /** Whether what is shown is the database's word, and the log has not confirmed it. */
  get isProvisional() {
    const { state, isAway } = this;
    const account = [this.watched, this.fed].find((account) => account.state === state);
    return account?.isRecord || (isAway && (!account || !hasEnded(state)));
  }

  /**
   * Take in what a topic says of the job.
   *
   * @param {"watched" | "fed"} by
   * @param {{ states: ReadonlyMap<string, any>, overlay: ReadonlyMap<string, any> }} view
   * @param {number} now
   */
  hear(by, { states, overlay }, now) {
    const { id } = this.job;
    // A log that was lost forgets the job; what it said still holds.
    const state = states.get(id) ?? this[by].state;
    if (state !== this[by].state) this.heardAt = now;
    this[by] = { state, isRecord: overlay.has(id) };
  }

  /** The job's own topic is not watched any more. */
  stopHearing() {
    this.subscription?.close();
    this.subscription = null;
    this.watched = SILENT;
  }

  /** @param {boolean} isOpen */
  open(isOpen) {
    this.isOpen = isOpen;
    this.head.setAttribute("aria-expanded", String(isOpen));
    this.detail.hidden = !isOpen;
    this.element.classList.toggle("open", isOpen);
    this.repaint();
  }

  /** @param {string} file @param {string} reason */
  addFailure(file, reason) {
    if (this.failedFiles.get(file) === reason) return;
    this.failedFiles.set(file, reason);
    this.repaint();
    this.failures.append(
      h("li", {}, h("span", { class: "file" }, file), h("span", { class: "muted" }, reason)),
    );
  }

  /** Have the next `paint` paint all. */
  repaint() {
    this.#painted = "";
  }

  /**
   * Bring the card up to date; cheap when nothing has changed.
   *
   * @param {number} now the server's time, in seconds
   */
  paint(now) {
    const { state, job } = this;
    this.#measure(state, now);
    const { isProvisional } = this;
    const { label, cancel_requested } = job;
    const key = JSON.stringify([state, label, cancel_requested, this.isOpen, isProvisional]);
    if (key !== this.#painted) {
      this.#painted = key;
      this.#paintState(state);
    }
    this.#paintTimes(state, now);
  }

  /** @param {State} state @param {number} now */
  #measure(state, now) {
    if (state.status !== "running") return;
    const startedAt = seconds(state.started_at);
    if (!this.#pace.isStarted && startedAt !== null) this.#pace.start(Math.min(startedAt, now));
    this.#pace.add(now, done(state));
  }

  /** @param {State} state */
  #paintState(state) {
    const { job } = this;
    const isStopping = job.cancel_requested && !hasEnded(state);
    const fields = state.fields ?? {};
    const unit = state.progress?.unit || "files";
    const all = total(state);
    const share = percent(state);

    this.element.dataset.status = state.status;
    this.element.toggleAttribute("data-provisional", this.isProvisional);
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
    const { error } = state;
    setText(this.error, error && state.status !== "cancelled"
      ? [error.type, error.message].filter(Boolean).join(": ") : "");
    setText(this.current, !hasEnded(state) && fields.current_file
      ? `Reading ${fields.current_file}` : "");

    this.cancelButton.hidden = hasEnded(state);
    this.removeButton.hidden = !hasEnded(state);
    this.cancelButton.toggleAttribute("disabled", isStopping);
    this.#paintCounts([
      ["Indexed", fields.processed_files],
      ["Failed", fields.failed_files],
      ["Passages", fields.chunks],
      ["Attempt", (state.attempt ?? 0) > 1 ? state.attempt : undefined],
    ]);
    this.failureBox.hidden = this.failedFiles.size === 0;
    setText(/** @type {Element} */ (this.failureBox.firstElementChild),
      `${plural(this.failedFiles.size, "file")} could not be indexed`);
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
    const queuedAt = seconds(this.job.state.queued_at ?? state.queued_at);
    setText(this.when, queuedAt === null ? "" : agoText(now - queuedAt));
    const unit = state.progress?.unit || "files";
    let speed = "";
    let left = "";
    if (this.isProvisional && !hasEnded(state)) {
      // From what comes every twenty seconds no speed is to be told.
      left = `as of ${Math.max(1, Math.round(now - this.heardAt))} s ago`;
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

  /** A sentence for those who do not see the bar. */
  get spoken() {
    const fields = this.state.fields ?? {};
    const status = STATUS_TEXT[/** @type {"queued"} */ (this.state.status)] ?? this.state.status;
    return `${this.job.label}: ${status}. ${plural(fields.processed_files ?? 0, "file")} indexed` +
      `${fields.failed_files ? `, ${fields.failed_files} failed` : ""}.`;
  }
}

/** @param {string | null | undefined} time @returns {number | null} */
function seconds(time) {
  const milliseconds = time ? Date.parse(time) : NaN;
  return Number.isNaN(milliseconds) ? null : milliseconds / 1000;
}
