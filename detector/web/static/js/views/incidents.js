// What is open, newest and worst first, each with its sentence; and what was.

import { get, offers } from "../api.js";
import { acknowledge } from "../dialogs.js";
import { h, keyed, put } from "../dom.js";
import { count, dayOf, now, plural, score } from "../format.js";
import { on } from "../live.js";
import { age, fact, lasting, sentence, severity, stillFiring, streamNames, when } from "../parts.js";
import { incidentLink, readdress, setTitle } from "../router.js";
import { channelWord } from "../words.js";
import { guarded } from "./guarded.js";

const OPEN = 200;
const RECENT = 30;

export async function showIncidents({ main, signal }) {
  setTitle("Incidents");
  readdress("#/");
  const byId = new Map();
  const [open, recent, status, canAcknowledge] = await Promise.all([
    get("/incidents", { state: "open", limit: OPEN }, signal),
    get("/incidents", { state: "resolved", limit: RECENT }, signal),
    get("/status", {}, signal),
    offers("POST", "/incidents/{id}/acknowledge"),
  ]);
  const take = (incidents) => incidents.forEach((one) => byId.set(one.id, one));
  take(open.incidents);
  take(recent.incidents);
  let next = recent.next;
  let figures = status;

  const head = h("h1", {});
  const facts = h("p", { class: "facts" });
  const openList = h("ol", { class: "incidents", "aria-label": "Open incidents" });
  const pastList = h("ol", { class: "past", "aria-label": "Recent incidents" });
  const older = h("button", { type: "button", class: "button", "data-key": "next", on: { click: more } }, "Older incidents");
  const past = h("section", { class: "section" }, h("div", { class: "head" }, h("h2", {}, "Recent")), h("div", { class: "card" }, pastList), h("p", { class: "actions after" }, older));
  put(main, h("header", { class: "lead" }, head, facts), openList, past);

  function draw() {
    const all = [...byId.values()];
    const opened = all.filter((one) => one.state === "open").sort(worstFirst);
    const ended = all.filter((one) => one.state !== "open").sort((a, b) => Date.parse(b.started_at) - Date.parse(a.started_at));
    const critical = opened.filter((one) => one.severity === "critical").length;
    head.textContent = opened.length
      ? `${plural(opened.length, "open incident")}${critical ? `, ${criticalWord(critical, opened.length)}` : ""}`
      : "Nothing is wrong";
    keyed(openList, opened, (one) => one.id, card);
    keyed(pastList, ended, (one) => one.id, row);
    openList.hidden = !opened.length;
    past.hidden = !ended.length;
    older.parentElement.hidden = !next;
    drawFacts(opened, ended);
  }

  function drawFacts(opened, ended) {
    const last = ended.reduce((latest, one) => Math.max(latest, Date.parse(one.ended_at)), 0);
    put(facts,
      !opened.length && last ? h("span", {}, "last incident ended ", h("b", {}, age(new Date(last).toISOString()))) : null,
      fact("streams", count(figures.streams)),
      fact("events a second", count(figures.events_per_second)),
      figures.lag ? fact("not read yet", count(figures.lag)) : null);
  }

  async function more() {
    older.disabled = true;
    try {
      const page = await get("/incidents", { state: "resolved", limit: RECENT, before: next }, signal);
      take(page.incidents);
      next = page.next;
      draw();
    } catch (error) {
      older.textContent = error.message;
    } finally {
      older.disabled = false;
    }
  }

  function card(incident) {
    const { acknowledged } = incident;
    const button = guarded("Acknowledge", "acknowledge", async () => (await acknowledge(incident)) && refresh());
    return h("li", { class: `card incident ${incident.severity}`, "data-item": true },
      h("div", { class: "incident-main" },
        h("p", { class: "facts" }, severity(incident), h("span", {}, "since ", when(incident.started_at)),
          h("span", {}, plural(incident.streams, "stream")), stillFiring(incident), channels(incident), fact("score", score(incident.score)),
          acknowledged ? h("span", {}, "taken by ", h("b", {}, sentence(acknowledged.by))) : null),
        h("h2", {}, h("a", { href: incidentLink(incident.id), "data-row": incident.id }, sentence(incident.summary))),
        streamNames(incident)),
      h("div", { class: "incident-side" }, lasting(incident, { class: "lasting" }), canAcknowledge && !acknowledged ? button : null));
  }

  async function refresh() {
    const [opened, ended] = await Promise.all([
      get("/incidents", { state: "open", limit: OPEN }, signal), get("/incidents", { state: "resolved", limit: RECENT }, signal)]);
    for (const [id, one] of byId) if (one.state === "open") byId.delete(id);
    take(opened.incidents);
    take(ended.incidents);
    draw();
  }

  on("incident", signal, (incident) => {
    const isNew = !byId.has(incident.id);
    byId.set(incident.id, incident);
    draw();
    if (isNew && incident.state === "open") openList.keyed.get(incident.id)?.element.classList.add("arrived");
  });
  on("status", signal, (found) => {
    figures = found;
    const all = [...byId.values()];
    drawFacts(all.filter((one) => one.state === "open"), all.filter((one) => one.state !== "open"));
  });
  on("again", signal, () => refresh().catch(() => {}));
  draw();
}

function criticalWord(critical, all) {
  if (critical < all) return `${critical} critical`;
  return all === 1 ? "critical" : all === 2 ? "both critical" : "all critical";
}

/** Critical before warnings; of each the newest first. */
function worstFirst(a, b) {
  const rank = (one) => (one.severity === "critical" ? 0 : 1);
  return rank(a) - rank(b) || Date.parse(b.started_at) - Date.parse(a.started_at) || b.score - a.score;
}

function channels(incident) {
  const words = [...new Set(incident.alerts.map((alert) => alert.channel))].filter(Boolean).map(channelWord);
  return words.length ? h("span", {}, words.slice(0, 3).join(", ")) : null;
}

function row(incident) {
  const at = Date.parse(incident.started_at);
  return h("li", { class: "past-row", "data-item": true },
    h("span", { class: "past-when" }, h("span", { class: `mark ${incident.severity}`, role: "img", "aria-label": incident.severity }), dayOf(at) === dayOf(now()) ? "today, " : null, when(incident.started_at)),
    h("a", { href: incidentLink(incident.id), "data-row": incident.id }, sentence(incident.summary)),
    h("span", { class: "soft nowrap" }, incident.streams > 1 ? `${plural(incident.streams, "stream")}, ` : "", "lasted ", lasting(incident)));
}
