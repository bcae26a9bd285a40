import { h, oncePerFrame, setText } from "./dom.js";
import { clockText, gapText, plural, recordText } from "./text.js";

const MAX_ROWS = 1000;
/** Frequent, and visible in the bar: shown in the list only with "every step". */
const ROUTINE_TYPES = new Set(["job_progress", "file_processing"]);
const TYPE_TEXT = {
  file_processing: "reading",
  file_completed: "indexed",
  file_failed: "failed",
  job_queued: "waiting",
  job_started: "started",
  job_progress: "progress",
  job_retrying: "retrying",
  job_completed: "done",
  job_failed: "failed",
  job_cancelling: "cancelling",
  job_cancelled: "cancelled",
  job_lost: "lost",
  log: "log",
};

/**
 * @typedef {{ offset: number, type: string, time: string, data?: Record<string, any>,
 *   state?: import("./job-state.js").State | null }} Event
 */

/** The list of a job's events, by offset. New rows are added once per animation frame. */
export class EventLog {
  /** @type {Map<number, Event>} by offset; not yet in the list */
  #added = new Map();
  /** Rows ever added since `clear`; the list has the last MAX_ROWS of them. */
  #count = 0;
  #list;
  /** The part that scrolls; hidden while the list is empty. */
  #box;
  #note;
  #countText;
  #gapText;
  /** Events that were left out because the page read too slowly. */
  #leftOut = 0;
  #paintSoon = oncePerFrame(() => this.#paint());

  constructor() {
    this.#list = h("ol");
    // The role of a log would replace that of the list, so the list is inside.
    this.#box = h("div", {
      class: "events", role: "log", "aria-live": "off", "aria-label": "Events",
      tabindex: "0", "data-testid": "events", hidden: true,
    }, this.#list);
    this.#note = h("p", { class: "muted small events-note" });
    this.#countText = h("span", { class: "muted" });
    this.#gapText = h("p", { class: "muted small events-note", "data-testid": "gap" });
    const every = h("input", {
      type: "checkbox",
      onchange: () => this.#box.classList.toggle("all", /** @type {any} */ (every).checked),
    });
    this.element = h(
      "section", { class: "event-box", "aria-label": "Events" },
      h("header", {}, h("h3", {}, "Events"), this.#countText,
        h("label", { class: "small" }, every, "every step")),
      this.#box, this.#gapText, this.#note,
    );
    this.explain("");
  }

  get isEmpty() {
    return this.#count === 0 && this.#added.size === 0;
  }

  /** @param {string} text why there are no events, or no further ones */
  explain(text) {
    setText(this.#note, text);
  }

  /**
   * Say which events are not in the list.
   *
   * @param {{ reason: string, events: number | null } | null} gap null: none is known
   */
  noteGap(gap) {
    if (!gap) this.#leftOut = 0;
    else if (gap.reason === "conflated") this.#leftOut += gap.events ?? 0;
    const isSum = gap?.reason === "conflated";
    setText(this.#gapText, gap ? gapText(gap.reason, isSum ? this.#leftOut : gap.events) : "");
  }

  clear() {
    this.#added.clear();
    this.#count = 0;
    this.#list.replaceChildren();
    this.#box.hidden = true;
  }

  /** @param {Event} event */
  add(event) {
    this.#added.set(event.offset, event);
    this.#paintSoon();
  }

  #paint() {
    const list = this.#list;
    const box = this.#box;
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    const rows = new Map([...list.children].map((row) => [offsetOf(row), row]));
    const fresh = [...this.#added.values()]
      .filter(({ offset }) => !rows.has(offset))
      .sort((one, other) => one.offset - other.offset);
    this.#added.clear();
    // Live events belong after the last row, events of a fetched history before the first.
    let next = list.firstElementChild;
    if (fresh[0] && offsetOf(list.lastElementChild) < fresh[0].offset) next = null;
    const added = document.createDocumentFragment();
    for (const event of fresh) {
      while (next && offsetOf(next) < event.offset) {
        list.insertBefore(added, next);
        next = next.nextElementSibling;
      }
      added.append(row(event));
    }
    list.insertBefore(added, next);
    this.#count += fresh.length;
    while (list.childElementCount > MAX_ROWS) list.firstElementChild?.remove();
    setText(this.#countText, this.#count.toLocaleString("en"));
    if (this.#count) this.explain("");
    box.hidden = list.childElementCount === 0;
    if (isAtEnd) box.scrollTop = box.scrollHeight;
  }
}

/** @param {Element | null} row */
function offsetOf(row) {
  return row ? Number(/** @type {HTMLElement} */ (row).dataset.offset) : 0;
}

/** @param {Event} event */
function row(event) {
  const { offset, type, time, data = {} } = event;
  return h(
    "li",
    { class: ROUTINE_TYPES.has(type) ? "routine" : null, "data-offset": offset, "data-type": type },
    h("time", { datetime: time, title: time }, clockText(time)),
    h("span", { class: "what" }, typeText(type)),
    h("span", { class: "about" }, detailText(event, data)),
    h("span", { class: "offset", "aria-hidden": "true" }, String(offset)),
  );
}

/** @param {string} type */
function typeText(type) {
  return TYPE_TEXT[/** @type {"log"} */ (type)] ?? type.replaceAll("_", " ");
}

/** @param {Event} event @param {Record<string, any>} data */
function detailText({ type, state }, data) {
  if (type === "log") return recordText(data);
  if (data.file !== undefined) {
    const tail = data.reason ?? (data.chunks === undefined ? "" : plural(data.chunks, "passage"));
    return tail ? `${data.file}, ${tail}` : String(data.file);
  }
  const progress = state?.progress;
  if (type === "job_progress" && progress) return `${progress.current} of ${progress.total ?? "?"}`;
  if (type === "job_completed" && state?.fields) {
    const { processed_files = 0, failed_files = 0 } = state.fields;
    return `${processed_files} indexed${failed_files ? `, ${failed_files} failed` : ""}`;
  }
  if (state?.error?.message) return `${state.error.type}: ${state.error.message}`;
  if (type === "job_started" && (state?.attempt ?? 0) > 1) return `attempt ${state?.attempt}`;
  return typeof data.message === "string" ? data.message : "";
}
