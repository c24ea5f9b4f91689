// Small pieces that several views show.

import { h, name, visible } from "./dom.js";
import { dayOf, moment, now, plural, since, span } from "./format.js";
import { incidentLink, streamLink } from "./router.js";

const LONG = 7 * 86400; // s, after which a day says more than an age
const MAX_NAMES = 4;

/** A severity's shape and word. */
export function severity(item, word = item.severity) {
  const ended = item.ended_at !== null;
  return h("span", { class: "state" },
    h("span", { class: `mark ${ended ? "resolved" : item.severity}`, "aria-hidden": "true" }),
    h("span", { class: `word ${ended ? "resolved" : item.severity}` }, ended ? "resolved" : word));
}

/** A moment with its age; the age goes on by itself. */
export function when(text, { ago = false } = {}) {
  if (!text) return h("span", {}, "–");
  return h("time", { datetime: text, title: `${text} (UTC)`, ...(ago ? { "data-ago": text } : {}) }, ago ? age(text) : moment(text));
}

export function age(text) {
  const seconds = since(text);
  if (seconds >= LONG) return moment(text);
  return seconds < 2 ? "now" : `${span(Math.round(seconds))} ago`;
}

/** How long something has lasted or did last. */
export function lasted(item) {
  const until = item.ended_at ? Date.parse(item.ended_at) : now();
  const seconds = Math.max(0, (until - Date.parse(item.started_at)) / 1000);
  if (!item.ended_at && seconds >= LONG) return `since ${dayOf(Date.parse(item.started_at))}`;
  return span(seconds);
}

export const lasting = (item, attributes = {}) =>
  h("span", { ...attributes, ...(item.ended_at ? {} : { "data-lasting": item.started_at }) }, lasted(item));

/** Let ages go on, once a second, for as long as the page lives. */
export function keepAges() {
  setInterval(() => {
    if (document.hidden) return;
    for (const one of document.querySelectorAll("[data-ago]")) write(one, age(one.dataset.ago));
    for (const one of document.querySelectorAll("[data-lasting]")) {
      write(one, lasted({ started_at: one.dataset.lasting, ended_at: null }));
    }
  }, 1000);
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A sentence of the daemon's: it holds names of streams, which may be written from right to left. */
export const sentence = (text) => h("bdi", {}, visible(text));

/** How many alerts of an open incident still fire, as far as they are all known here; null: all of them, or unknown. */
export function stillFiring(incident) {
  if (incident.ended_at || incident.alerts.length < incident.streams) return null;
  const firing = incident.alerts.filter((alert) => !alert.ended_at).length;
  if (firing === incident.alerts.length) return null;
  return h("span", {}, firing ? `${firing} of ${plural(incident.alerts.length, "alert")} still fire${firing === 1 ? "s" : ""}` : "no alert fires any more: it ends soon, if none follows");
}

/** The names of an incident's streams, the worst first. */
export function streamNames(incident, most = MAX_NAMES) {
  const names = [...new Set(incident.alerts.map((alert) => alert.stream))];
  const shown = names.slice(0, most).map((one) => h("a", { class: "tag name", href: streamLink(one), title: one }, h("bdi", {}, visible(one))));
  const more = incident.streams - shown.length;
  return h("span", { class: "names" }, shown, more > 0 ? h("a", { class: "tag", href: incidentLink(incident.id) }, `and ${more} more`) : null);
}

/** Who said something, and why. */
export const signature = ({ by, reason, at }) =>
  [h("b", {}, sentence(by || "somebody")), reason ? [": ", sentence(reason)] : null, ", ", when(at, { ago: true })];

export { name };

/** A figure with its name. */
export const fact = (label, value) => h("span", {}, `${label} `, h("b", {}, value));

let toast = null;

/** Tell briefly what was done, to eyes and to screen readers. */
export function tell(text) {
  document.getElementById("news").textContent = text;
  toast?.remove();
  toast = h("div", { class: "toast", "aria-hidden": "true" }, text);
  document.body.append(toast);
  const own = toast;
  setTimeout(() => own.remove(), 5000);
}
