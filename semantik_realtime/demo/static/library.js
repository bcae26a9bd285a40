import { call } from "./api.js";
import { askFirst, byId, h, setText } from "./dom.js";
import { errorText, plural, sizeText } from "./text.js";

const MAX_SHOWN = 200;

/**
 * @typedef {{ key: string, id: number | null, name: string, origin: "folder" | "upload",
 *   size_bytes: number, status: string, chunks: number, error: string | null }} Entry
 */

/** The list of documents, those of the server's folder and the uploaded ones. */
export class Library {
  /** @type {Entry[]} */
  #entries = [];
  /** @type {Map<string, HTMLElement>} the rows in the page, by key */
  #rows = new Map();
  /** @type {Set<string>} keys of the selected entries */
  #chosen = new Set();
  /** Whether the folder has more files than the host lists. */
  #isTruncated = false;
  #startAll = byId("start-all");
  #startSelected = byId("start-selected");
  #filter = byId("filter");
  #list = byId("documents");

  /** @param {(choice: object) => Promise<void>} startJob */
  constructor(startJob) {
    this.#startAll.addEventListener("click", () => this.#run(() => startJob({ all: true })));
    this.#startSelected.addEventListener("click", () =>
      this.#run(async () => {
        await startJob(this.#choice());
        this.#chosen.clear();
        this.#paint();
      }));
    this.#filter.addEventListener("input", () => this.#paint());
    byId("upload").addEventListener("change", (/** @type {any} */ { target }) => {
      this.#upload([...target.files]);
      target.value = "";
    });
    this.#acceptDrops();
  }

  async refresh() {
    const [folder, { documents }] = await Promise.all([
      call("GET", "/folder"),
      call("GET", "/documents"),
    ]);
    const known = new Map();
    for (const document of documents) known.set(`${document.origin}:${document.name}`, document);
    const files = folder.files.map((/** @type {any} */ { path, size_bytes }) => {
      const key = `folder:${path}`;
      const fresh = { id: null, status: "new", chunks: 0, error: null };
      return { ...fresh, ...known.get(key), key, name: path, origin: "folder", size_bytes };
    });
    const uploads = documents
      .filter((/** @type {any} */ { origin }) => origin === "upload")
      .map((/** @type {any} */ document) => ({ ...document, key: `upload:${document.name}` }));
    this.#entries = [...uploads, ...files];
    this.#isTruncated = folder.truncated;
    const keys = new Set(this.#entries.map(({ key }) => key));
    for (const key of this.#chosen) if (!keys.has(key)) this.#chosen.delete(key);
    this.#paint();
  }

  /**
   * Show at once what a job did with a file; the next `refresh` shows the host's record of it.
   *
   * @param {string} name
   * @param {{ status: string, chunks: number, error: string | null }} outcome
   */
  mark(name, outcome) {
    for (const entry of this.#entries) {
      if (entry.name !== name) continue;
      Object.assign(entry, outcome);
      const row = this.#rows.get(entry.key);
      if (!row) continue;
      row.dataset.status = entry.status;
      setText(/** @type {Element} */ (row.querySelector(".meta")), metaText(entry));
    }
    this.#paintSummary();
  }

  #choice() {
    const chosen = this.#entries.filter(({ key }) => this.#chosen.has(key));
    return {
      paths: chosen.filter(({ origin }) => origin === "folder").map(({ name }) => name),
      documents: chosen.filter(({ origin }) => origin === "upload").map(({ id }) => id),
    };
  }

  /** @param {() => Promise<void>} act */
  async #run(act) {
    this.#startAll.disabled = this.#startSelected.disabled = true;
    setText(byId("start-error"), "");
    try {
      await act();
    } catch (error) {
      setText(byId("start-error"), errorText(error));
    } finally {
      this.#paintButtons();
    }
  }

  /** @param {File[]} files */
  async #upload(files) {
    if (!files.length) return;
    const status = byId("upload-status");
    setText(status, `Uploading ${plural(files.length, "file")} …`);
    byId("dropzone").classList.add("busy");
    try {
      const form = new FormData();
      for (const file of files) form.append("files", file, file.name);
      const { documents, refused } = await call("POST", "/documents", form);
      for (const { name } of documents) this.#chosen.add(`upload:${name}`);
      await this.refresh();
      const done = `${plural(documents.length, "file")} uploaded and selected`;
      const reasons = refused.map(
        (/** @type {any} */ { name, reason }) => `${name} was refused: ${reason}`,
      );
      setText(status, [done, ...reasons].join(". "));
    } catch (error) {
      setText(status, errorText(error));
    } finally {
      byId("dropzone").classList.remove("busy");
    }
  }

  #acceptDrops() {
    const zone = byId("dropzone");
    let depth = 0;
    const show = (/** @type {number} */ change) => {
      depth = Math.max(0, depth + change);
      zone.classList.toggle("over", depth > 0);
    };
    addEventListener("dragenter", (event) => {
      if (event.dataTransfer?.types.includes("Files")) show(1);
    });
    addEventListener("dragleave", () => show(-1));
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault();
      show(-depth);
      this.#upload([...(event.dataTransfer?.files ?? [])]);
    });
  }

  #paint() {
    const words = this.#filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const matching = this.#entries.filter(({ name }) =>
      words.every((/** @type {string} */ word) => name.toLowerCase().includes(word)));
    const focused = [...this.#rows].find(([, row]) => row.contains(document.activeElement))?.[0];
    this.#rows = new Map(
      matching.slice(0, MAX_SHOWN).map((entry) => [entry.key, this.#row(entry)]),
    );
    this.#list.replaceChildren(...this.#rows.values());
    this.#rows.get(focused ?? "")?.querySelector("input")?.focus();
    const count = this.#entries.length;
    const hidden = matching.length - Math.min(matching.length, MAX_SHOWN);
    this.#filter.hidden = count <= 8;
    byId("documents-empty").hidden = count > 0;
    const more = [];
    if (words.length && !matching.length) more.push("No document has this name.");
    if (hidden) more.push(`${plural(hidden, "more file")}: filter to see them.`);
    if (this.#isTruncated) more.push("The folder has more files than can be listed.");
    setText(byId("documents-more"), more.join(" "));
    this.#paintSummary();
    this.#paintButtons();
  }

  #paintSummary() {
    const count = this.#entries.length;
    const indexed = this.#entries.filter(({ status }) => status === "indexed").length;
    const summary = count ? `${indexed.toLocaleString("en")} of ${plural(count, "file")} indexed` : "";
    setText(byId("documents-summary"), summary);
  }

  #paintButtons() {
    const count = this.#chosen.size;
    this.#startAll.disabled = this.#entries.length === 0;
    this.#startSelected.disabled = count === 0;
    setText(this.#startSelected, count ? `Index ${count.toLocaleString("en")} selected` : "Index selected");
  }

  /** @param {Entry} entry */
  #row(entry) {
    const at = entry.name.lastIndexOf("/") + 1;
    const box = h("input", {
      type: "checkbox", checked: this.#chosen.has(entry.key),
      onchange: (/** @type {any} */ { target }) => {
        if (target.checked) this.#chosen.add(entry.key);
        else this.#chosen.delete(entry.key);
        this.#paintButtons();
      },
    });
    const remove = h(
      "button",
      { class: "remove", "aria-label": `Delete ${entry.name}`, title: "Delete",
        onclick: askFirst("Delete?", () => this.#run(() => this.#remove(entry))) },
      "×",
    );
    return h(
      "li", { "data-status": entry.status, "data-testid": "document" },
      h("label", {}, box,
        h("span", { class: "name", title: entry.name },
          at ? h("span", { class: "muted folder" }, entry.name.slice(0, at)) : null,
          h("span", { class: "leaf" }, entry.name.slice(at))),
        h("span", { class: "meta muted small" }, metaText(entry))),
      entry.origin === "upload" ? remove : null,
    );
  }

  /** @param {Entry} entry */
  async #remove({ id }) {
    await call("DELETE", `/documents/${id}`);
    await this.refresh();
  }
}

/** @param {Entry} entry */
function metaText({ status, chunks, error, size_bytes }) {
  if (status === "failed") return error ?? "failed";
  if (status === "indexed") return plural(chunks, "passage");
  return sizeText(size_bytes);
}
