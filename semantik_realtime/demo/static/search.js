import { call } from "./api.js";
import { byId, h, plural, setText } from "./dom.js";
import { sentence } from "./library.js";

const PATIENCE_MILLISECONDS = 180;

/** The search field and what it finds. */
export class Search {
  #latest = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  constructor() {
    this.field = byId("search");
    byId("search-form").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      this.#ask();
    });
    this.field.addEventListener("input", () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#ask(), PATIENCE_MILLISECONDS);
    });
    addEventListener("keydown", (event) => {
      const isTyping = /** @type {Element} */ (event.target).closest?.("input, textarea");
      if (event.key === "/" && !isTyping && this.field.offsetParent) {
        event.preventDefault();
        this.field.focus();
      }
    });
  }

  /** Ask again, if something is asked: the index has changed. */
  refresh() {
    if (this.field.value.trim()) this.#ask();
  }

  clear() {
    this.field.value = "";
    this.#ask();
  }

  async #ask() {
    clearTimeout(this.#timer);
    const number = ++this.#latest;
    const query = this.field.value.trim();
    if (!query) return this.#show("", []);
    try {
      const found = await call("GET", `/search?q=${encodeURIComponent(query)}`);
      if (number !== this.#latest) return;
      const count = found.results.length;
      this.#show(
        count ? `${plural(count, "document")} in ${found.took_ms} ms`
          : `Nothing found for “${query}”. Only indexed documents are searched.`,
        found.results,
      );
    } catch (error) {
      if (number === this.#latest) this.#show(sentence(error), []);
    }
  }

  /** @param {string} summary @param {any[]} results */
  #show(summary, results) {
    setText(byId("search-summary"), summary);
    byId("search-results").replaceChildren(
      ...results.map(({ title, snippet, passages }) =>
        h(
          "li", { "data-testid": "result" },
          h("h3", {}, title,
            passages > 1 ? h("span", { class: "muted small" }, ` ${passages} passages`) : null),
          h("p", {}, ...snippet.map((/** @type {{ text: string, hit: boolean }} */ { text, hit }) =>
            hit ? h("mark", {}, text) : text)),
        )),
    );
  }
}
