// One incident: what broke together, in which order, and why, alert by alert.

import { get, offers } from "../api.js";
import { acknowledge, literal, mute } from "../dialogs.js";
import { h, put, visible } from "../dom.js";
import { plural, score } from "../format.js";
import { on } from "../live.js";
import { fact, lasting, sentence, severity, signature, stillFiring, when } from "../parts.js";
import { incidentLink, readdress, setTitle } from "../router.js";
import { channelWord, rarity } from "../words.js";
import { showDetail } from "./alert.js";
import { guarded } from "./guarded.js";
import { lanes } from "./lanes.js";

const MOST = 200; // alerts in the list

/** An alert's own address leads to its incident. */
export async function showAlert({ main, id, signal }) {
  const found = await get(`/alerts/${encodeURIComponent(id)}`, {}, signal);
  if (found.incident === null) {
    const alone = h("article", { class: "detail", "aria-label": "Alert" });
    put(main, h("a", { class: "back", href: "#/" }, "Incidents"), h("p", { class: "note" }, "Its incident is not known any more."), alone);
    return showDetail(alone, id, { signal, changed: () => showAlert({ main, id, signal }) });
  }
  readdress(incidentLink(found.incident, id));
  return showIncident({ main, id: found.incident, query: new URLSearchParams({ alert: id }), signal });
}

export async function showIncident({ main, id, query, signal }) {
  const path = `/incidents/${encodeURIComponent(id)}`;
  const [found, canAcknowledge, canMute] = await Promise.all([
    get(path, {}, signal), offers("POST", "/incidents/{id}/acknowledge"), offers("POST", "/mutes")]);
  let incident = found;
  let selected = query.get("alert") ?? "";
  if (!incident.alerts.some((one) => one.id === selected)) selected = incident.alerts[0]?.id ?? "";
  setTitle(visible(incident.summary).slice(0, 80));

  const head = h("header", { class: "lead" });
  const list = h("div", {});
  const detail = h("article", { class: "detail", "aria-label": "Alert", "aria-live": "off" });
  put(main, h("a", { class: "back", href: "#/" }, "Incidents"), head,
    h("div", { class: incident.alerts.length > 1 ? "split" : "" }, list, detail));

  function drawHead() {
    const { acknowledged } = incident;
    put(head,
      h("p", { class: "facts" }, severity(incident), h("span", {}, incident.ended_at ? "lasted " : "for ", h("b", {}, lasting(incident))),
        h("span", {}, "since ", h("b", {}, when(incident.started_at))),
        incident.ended_at ? h("span", {}, "until ", h("b", {}, when(incident.ended_at))) : null,
        fact(incident.streams === 1 ? "stream" : "streams", String(incident.streams)), fact("score", score(incident.score)), incident.alerts?.[0]?.channel === "silence" ? null : h("span", {}, rarity(incident.score)),
        stillFiring(incident), acknowledged ? h("span", {}, "taken by ", signature(acknowledged)) : null),
      h("h1", {}, sentence(incident.summary)),
      h("div", { class: "actions after" },
        canAcknowledge && !acknowledged ? guarded("Acknowledge", "acknowledge", async () => (await acknowledge(incident)) && reload()) : null,
        canMute ? guarded("Mute", "mute", async () => (await mute(pattern(incident), incident.ended_at ?? incident.started_at)) && reload()) : null));
  }

  function drawList() {
    if (incident.alerts.length < 2) return put(list);
    const shown = [...incident.alerts].sort((a, b) => Date.parse(a.started_at) - Date.parse(b.started_at) || b.score - a.score).slice(0, MOST);
    const items = shown.map((alert, i) => h("li", { "data-item": true },
      h("a", { class: "alert-row", href: incidentLink(id, alert.id), "data-row": alert.id, "aria-current": alert.id === selected ? "true" : null, on: { click: (event) => pick(event, alert.id) } },
        h("span", { class: `mark ${alert.ended_at ? "resolved" : alert.severity}`, role: "img", "aria-label": alert.ended_at ? "resolved" : alert.severity }),
        h("span", { class: "alert-what" }, h("bdi", { class: "name" }, visible(alert.stream)),
          h("span", { class: "soft small" }, `${channelWord(alert.channel)}, score ${score(alert.score)}`, alert.verdict ? `, marked ${alert.verdict}` : "")),
        lanes(incident, alert, i === 0))));
    const focused = list.contains(document.activeElement) ? document.activeElement.dataset.row : null;
    put(list, h("h2", {}, "What broke, first to last"), h("ol", { class: "card alerts after" }, items),
      incident.alerts.length > MOST ? h("p", { class: "note" }, `The first ${MOST} of ${plural(incident.alerts.length, "alert")}.`) : null);
    if (focused) list.querySelector(`[data-row="${CSS.escape(focused)}"]`)?.focus();
    return null;
  }

  function pick(event, alert) {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    selected = alert;
    readdress(incidentLink(id, alert));
    drawList();
    drawDetail();
  }

  let ending = null;
  async function drawDetail() {
    ending?.abort();
    ending = new AbortController();
    const own = AbortSignal.any([ending.signal, signal]);
    if (!selected) return put(detail, h("p", { class: "card empty" }, "No alert is known of this incident any more."));
    try {
      await showDetail(detail, selected, { signal: own, changed: reload });
    } catch (error) {
      if (!own.aborted) put(detail, h("p", { class: "card empty refused" }, error.message));
    }
    return null;
  }

  async function reload() {
    incident = await get(path, {}, signal);
    drawHead();
    drawList();
    drawDetail();
  }

  on("incident", signal, (changed) => changed.id === id && reload().catch(() => {}));
  on("again", signal, () => reload().catch(() => {}));
  signal.addEventListener("abort", () => ending?.abort());
  drawHead();
  drawList();
  await drawDetail();
}

/** What the names of an incident's streams begin with, as a pattern. */
function pattern(incident) {
  const names = [...new Set(incident.alerts.map((alert) => alert.stream))];
  if (names.length === 1) return literal(names[0]);
  let n = 0;
  while (names.every((one) => n < one.length && one[n] === names[0][n])) n += 1;
  const start = names[0].slice(0, n);
  return start.includes("/") ? `${literal(start.slice(0, start.lastIndexOf("/") + 1))}*` : literal(names[0]);
}
