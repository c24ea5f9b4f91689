// Elements. Whatever comes from the API goes in as text or as an attribute's value, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element. attributes: {class, id, on: {click: f}, css: {"--share": "0.3"}, ...}; null and false leave one out. */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Make an element of SVG. */
export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
    else if (name === "css") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Replace what an element holds. */
export function put(element, ...children) {
  element.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
}

/** Show a name as it is, apart from the direction of the text around it; what would be invisible is made visible. */
export function name(text, attributes = {}) {
  return h("bdi", { class: "name", ...attributes }, visible(text));
}

const PRESSED_MS = 100; // between two looks whether a list is still pressed

const INVISIBLE = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

/** Replace control characters, and those that turn the order of others around, by their code points. */
export function visible(text) {
  return String(text).replace(INVISIBLE, (c) => `⟨U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

/** Bring a list's elements in step with items, keeping those that did not change and where the keyboard was. */
export function keyed(list, items, keyOf, make) {
  clearTimeout(list.waiting);
  if (list.matches(":active")) { // what is pressed must still be there as it is let go, or the click is lost
    list.waiting = setTimeout(() => keyed(list, items, keyOf, make), PRESSED_MS);
    return;
  }
  const kept = (list.keyed ??= new Map());
  const held = document.activeElement?.closest?.("[data-row]");
  const focused = held && list.contains(held) ? held.dataset.row : null;
  const wanted = new Set(items.map(keyOf));
  for (const [key, { element }] of kept) {
    if (!wanted.has(key)) {
      element.remove();
      kept.delete(key);
    }
  }
  items.forEach((item, index) => {
    const key = keyOf(item);
    const face = JSON.stringify(item);
    let row = kept.get(key);
    if (!row || row.face !== face) {
      const element = make(item);
      row?.element.replaceWith(element);
      kept.set(key, (row = { element, face }));
    }
    if (list.children[index] !== row.element) list.insertBefore(row.element, list.children[index] ?? null);
  });
  if (focused !== null && !list.contains(document.activeElement)) {
    [...list.querySelectorAll("[data-row]")].find((row) => row.dataset.row === focused)?.focus();
  }
}
