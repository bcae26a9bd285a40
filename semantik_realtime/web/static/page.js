/** What the client uses of the page that loads it. Without a page, as in node, there is less. */

/**
 * Call a callback of the page. An error in it is logged and does not end the stream.
 *
 * @param {((...args: any[]) => unknown) | undefined} callback
 * @param {unknown[]} args
 */
export function call(callback, ...args) {
  try {
    callback?.(...args);
  } catch (error) {
    console.error(error);
  }
}

/** Return the storage of this tab, or null if there is none or the browser forbids it. */
export function ownStorage() {
  try {
    return globalThis.sessionStorage ?? null;
  } catch {
    return null;
  }
}

/**
 * @param {{ onBack: () => void, onLeave: () => void }} callbacks `onBack`: the network is back, or
 *   the page is visible again; `onLeave`: the page is hidden or unloaded
 * @returns {() => void} stops listening
 */
export function listenToPage({ onBack, onLeave }) {
  const page = globalThis.document;
  const onVisibility = () => (page.hidden ? onLeave() : onBack());
  globalThis.addEventListener?.("online", onBack);
  globalThis.addEventListener?.("focus", onBack);
  globalThis.addEventListener?.("pagehide", onLeave);
  page?.addEventListener("visibilitychange", onVisibility);
  return () => {
    globalThis.removeEventListener?.("online", onBack);
    globalThis.removeEventListener?.("focus", onBack);
    globalThis.removeEventListener?.("pagehide", onLeave);
    page?.removeEventListener("visibilitychange", onVisibility);
  };
}
