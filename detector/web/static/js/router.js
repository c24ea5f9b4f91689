// Which view an address shows: #/incidents/ID?alert=ID. A view gets a signal that ends with it.

import { h, put } from "./dom.js";

const routes = [];
let ending = null;
let first = true;
let shown = null; // the address that is

/** Add a view: `show({main, id, query, signal, title})` fills main. */
export function route(view, pattern, show) {
  routes.push({ view, pattern, show });
}

export function place() {
  const [, path, query = ""] = /^#?\/*([^?]*?)\/*(?:\?(.*))?$/s.exec(location.hash);
  return { path: `/${path}`, query: new URLSearchParams(query) };
}

/** Return the address of a view. */
export function link(path, query = {}) {
  const chosen = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return `#${path}${chosen.length ? `?${new URLSearchParams(chosen)}` : ""}`;
}

export const incidentLink = (id, alert = "") => link(`/incidents/${encodeURIComponent(id)}`, { alert });
export const streamLink = (stream) => link("/stream", { name: stream });

/** Change the address without showing the view anew; not once somebody has gone on, though that is not shown yet. */
export function readdress(hash) {
  if (location.hash !== shown) return;
  history.replaceState(null, "", hash);
  shown = location.hash;
}

export function setTitle(text) {
  document.title = `${text} · longwatch`;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a stray percent sign
  }
}

/** Show what the address says. */
export async function show() {
  ending?.abort();
  ending = new AbortController();
  const { signal } = ending;
  shown = location.hash;
  const { path, query } = place();
  const main = document.getElementById("main");
  const found = routes.map((one) => ({ ...one, match: one.pattern.exec(path) })).find((one) => one.match);
  for (const tab of document.querySelectorAll("#views a")) {
    if (tab.dataset.view === found?.view) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  const area = h("div", { "aria-busy": "true" });
  const later = setTimeout(() => !signal.aborted && put(main, h("p", { class: "soft" }, "Loading …")), 250);
  try {
    if (!found) throw new Error("There is no such page.");
    await found.show({ main: area, id: found.match[1] && decoded(found.match[1]), query, signal });
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") return;
    put(area, fault(error));
  } finally {
    clearTimeout(later);
  }
  if (signal.aborted) return;
  area.removeAttribute("aria-busy");
  put(main, area);
  if (!first) {
    scrollTo(0, 0);
    const head = area.querySelector("h1");
    head?.setAttribute("tabindex", "-1");
    (area.querySelector("[data-focus]") ?? head ?? main).focus({ preventScroll: true });
  }
  first = false;
}

/** Say why something cannot be shown, and offer to try again. */
export function fault(error) {
  return h("div", { class: "card fault" },
    h("h1", {}, "This cannot be shown"),
    h("p", { class: "soft" }, error.message),
    h("p", { class: "actions" },
      h("button", { type: "button", class: "button", on: { click: show } }, "Try again"),
      h("a", { href: "#/", class: "button" }, "All incidents")));
}
