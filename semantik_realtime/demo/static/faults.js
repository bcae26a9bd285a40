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
/** What is away after a fault, as the state of the connection, and the sentence for its return. */
const RETURN = {
  "restart-web": { away: "reconnecting", text: "The web server is back." },
  "stop-engine": { away: "degraded", text: "The broker is back." },
};
const LOG_MILLISECONDS = 2000;

/** The buttons that break something, and beside them what arrived all the same. */
export class Faults {
  count = new DeliveryCount();
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #timer;
  #topics;
  /** The return that the answer waits for. @type {{ away: string, text: string } | null} */
  #return = null;
  #isAway = false;
  /** Of the connection. */
  #state = "connecting";
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

  /** @param {string} state of the connection; after an outage, a return replaces the answer */
  noteState(state) {
    this.#state = state;
    if (state === this.#return?.away) this.#isAway = true;
    else if (this.#return && this.#isAway && (state === "live" || state === "degraded")) {
      setText(byId("fault-answer"), this.#return.text);
      this.#return = null;
    }
  }

  paint() {
    const { sent, received, merged, lost, doubled } = this.count;
    const rows = { sent, received, merged, missing: lost, doubled };
    for (const [name, number] of Object.entries(rows)) {
      setText(byId(`count-${name}`), number.toLocaleString("en"));
    }
    byId("count-merged").parentElement.hidden = merged === 0;
    byId("count-missing").classList.toggle("bad", lost > 0);
    byId("count-doubled").classList.toggle("bad", doubled > 0);
  }

  /** @param {string} fault */
  async #cause(fault) {
    const answer = byId("fault-answer");
    setText(answer, "…");
    this.#return = RETURN[/** @type {"stop-engine"} */ (fault)] ?? null;
    // What was stopped before is away already.
    this.#isAway = this.#state === this.#return?.away;
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
