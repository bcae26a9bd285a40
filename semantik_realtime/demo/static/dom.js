/**
 * Create an element (named `h` as in hyperscript). Strings become text nodes and are never parsed
 * as HTML.
 *
 * @param {string} tag
 * @param {Record<string, any>} attributes `on…` are listeners, `class` and `data-…` as in HTML
 * @param {...(Node | string | null)} children
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else if (value !== null && value !== undefined) element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** @param {string} id */
export function byId(id) {
  return /** @type {any} */ (document.getElementById(id));
}

/**
 * Set a text only if it differs: a screen reader reads a live region again after each change.
 *
 * @param {Element} element
 * @param {string} text
 */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Return the listener of a button that acts at the second click; at the first one it asks, and it
 * forgets the first one when it loses the focus.
 *
 * @param {string} question shown on the button after the first click
 * @param {() => void} act
 */
export function askFirst(question, act) {
  return (/** @type {{ currentTarget: any }} */ { currentTarget: button }) => {
    if (button.dataset.asks) {
      act();
      return;
    }
    const [text, label] = [button.textContent, button.getAttribute("aria-label")];
    button.dataset.asks = "yes";
    button.textContent = question;
    // The text is the name now.
    button.removeAttribute("aria-label");
    // Safari does not focus a button that is clicked.
    button.focus();
    button.addEventListener("blur", () => {
      delete button.dataset.asks;
      button.textContent = text;
      if (label !== null) button.setAttribute("aria-label", label);
    }, { once: true });
  };
}

/** @param {string} text for screen readers */
export function announce(text) {
  setText(byId("announcer"), text);
}

/**
 * Return a function that calls `paint` in the next animation frame, once for all its calls until
 * then.
 *
 * @param {() => void} paint
 */
export function oncePerFrame(paint) {
  let isDue = false;
  return () => {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => {
      isDue = false;
      paint();
    });
  };
}
