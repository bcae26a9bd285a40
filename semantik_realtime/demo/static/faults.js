import { call } from "./api.js";
import { DeliveryCount } from "./delivery-count.js";
import { byId, h, setText } from "./dom.js";
import { errorText } from "./text.js";

const TEXT = {
  "kill-children": "Kill the worker’s children",
  "kill-worker": "Kill the worker",
  "restart-web": "Restart the web server",
  "stop-engine": "Stop the broker for 20\u00a0s",
};
const LOG_MILLISECONDS = 2000;

/** The buttons that break something, and beside them what arrived all the same. */
export class Faults {
  count = new DeliveryCount();
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #timer;
  #topics;
  #isClosed = false;

  /** @param {() => string[]} topics returns those that are watched */
  constructor(topics) {
    this.#topics = topics;
  }

  /** Show the buttons, if this server has any. */
  async load() {
    // 404: the programs were not started by the demo's command.
    const { faults } = await call("GET", "/faults").catch(() => ({ faults: [] }));
    if (this.#isClosed || !faults.length) return;
    byId("fault-buttons").replaceChildren(
      ...faults.map((/** @type {keyof typeof TEXT} */ fault) =>
        h("button", { class: "secondary", "data-testid": fault, type: "button",
          onclick: () => this.#cause(fault) }, TEXT[fault] ?? fault)),
    );
    byId("faults").hidden = false;
    this.#timer = setInterval(() => this.#askLogs(), LOG_MILLISECONDS);
    this.paint();
  }

  close() {
    this.#isClosed = true;
    clearInterval(this.#timer);
    byId("faults").hidden = true;
    setText(byId("fault-answer"), "");
  }

  paint() {
    const { sent, received, merged, lost, doubled } = this.count;
    const rows = { sent, received, lost, doubled };
    for (const [name, number] of Object.entries(rows)) {
      setText(byId(`count-${name}`), number.toLocaleString("en"));
    }
    byId("count-lost").classList.toggle("bad", lost > 0);
    byId("count-doubled").classList.toggle("bad", doubled > 0);
    setText(byId("count-merged"), merged
      ? `${merged.toLocaleString("en")} older ones came summed up, in a snapshot or a later event.`
      : "");
  }

  /** @param {string} fault */
  async #cause(fault) {
    const answer = byId("fault-answer");
    setText(answer, "…");
    try {
      setText(answer, (await call("POST", `/faults/${fault}`)).sentence);
    } catch (error) {
      setText(answer, errorText(error));
    }
  }

  /** Ask how long the logs are: only then a lost tail would show. */
  async #askLogs() {
    if (document.hidden) return;
    for (const topic of this.#topics()) {
      const path = `/realtime/jobs/${topic.slice("job:".length)}`;
      const response = await fetch(path).catch(() => null);
      // Not while the log cannot be read: then it is the database's record, without offsets.
      const log = response?.ok ? await response.json().catch(() => null) : null;
      if (log?.cursor) this.count.noteLog(topic, log.offset);
    }
    this.paint();
  }
}
