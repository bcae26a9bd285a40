import { call } from "./api.js";
import { byId, h, setText } from "./dom.js";
import { errorText, plural } from "./text.js";

const TYPING_MILLISECONDS = 180;

/** The search field and its results. */
export class Search {
  /** Number of the newest request; responses to earlier ones are ignored. */
  #newest = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} searches after a pause in typing */
  #timer;
  #field = byId("search");

  constructor() {
    byId("search-form").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      this.#search();
    });
    this.#field.addEventListener("input", () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#search(), TYPING_MILLISECONDS);
    });
    addEventListener("keydown", (event) => {
      const isTyping = /** @type {Element} */ (event.target).closest?.("input, textarea");
      if (event.key === "/" && !isTyping && this.#field.offsetParent) {
        event.preventDefault();
        this.#field.focus();
      }
    });
  }

  /** Search again, because the index has changed. */
  refresh() {
    if (this.#field.value.trim()) this.#search();
  }

  clear() {
    this.#field.value = "";
    this.#search();
  }

  async #search() {
    clearTimeout(this.#timer);
    const number = ++this.#newest;
    const query = this.#field.value.trim();
    if (!query) return this.#show("", []);
    try {
      const found = await call("GET", `/search?q=${encodeURIComponent(query)}`);
      if (number !== this.#newest) return;
      const count = found.results.length;
      this.#show(
        count ? `${plural(count, "document")} in ${found.took_ms} ms`
          : `Nothing found for “${query}”. Only indexed documents are searched.`,
        found.results,
      );
    } catch (error) {
      if (number === this.#newest) this.#show(errorText(error), []);
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
