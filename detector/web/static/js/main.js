// The frame around the views: what is the same wherever one is.

import { get } from "./api.js";
import { askForToken, showHelp } from "./dialogs.js";
import { count, learnNow, now, remember, remembered, secondOf, zone } from "./format.js";
import { keys } from "./keys.js";
import { live, on } from "./live.js";
import { keepAges, sentence } from "./parts.js";
import { put } from "./dom.js";
import { route, show } from "./router.js";
import { session } from "./session.js";
import { showAlert, showIncident } from "./views/incident.js";
import { showIncidents } from "./views/incidents.js";
import { showMutes } from "./views/mutes.js";
import { showFleet } from "./views/fleet.js";
import { showStream } from "./views/stream.js";
import { showStreams } from "./views/streams.js";

const $ = (id) => document.getElementById(id);
const MISSED_SECONDS = 1.5;
const HIDDEN_SECONDS = 30; // between two looks of a tab that nobody sees

route("incidents", /^\/(?:incidents|alerts)?$/, showIncidents);
route("incidents", /^\/incidents\/([^/]+)$/, showIncident);
route("incidents", /^\/alerts\/([^/]+)$/, showAlert);
route("streams", /^\/streams?$/, (view) => (view.query.get("name") ? showStream : showStreams)(view));
route("streams", /^\/streams?\/(.+)$/, showStream); // as one may write it by hand; names hold slashes
route("mutes", /^\/mutes$/, showMutes);
route("fleet", /^\/fleet$/, showFleet);

function status(found) {
  learnNow(found.now);
  const open = $("open-count");
  open.hidden = found.open_incidents === 0;
  open.textContent = count(found.open_incidents);
  open.setAttribute("aria-label", `, ${found.open_incidents} open`);
  document.title = document.title.replace(/^(\(\d+\) )?/, found.open_incidents ? `(${found.open_incidents}) ` : "");
  trouble = found.ready ? "" : `Not ready: ${found.word}`;
  drawBanner();
  $("foot-version").textContent = `longwatch ${found.version}`;
}

let trouble = ""; // the daemon's own
let lostAt = null; // ms; null: the connection is there, or not missed
let missing = null;

function drawBanner() {
  const banner = $("banner");
  const text = lostAt === null ? trouble : `No connection to the daemon since ${secondOf(lostAt)}. What you see is from before; this page tries again by itself.`;
  if (banner.textContent !== text) banner.textContent = text;
  banner.hidden = !text;
}

/** Say that the connection is lost where it does not come back at once. */
function missed(state) {
  clearTimeout(missing);
  if (state === "lost") {
    const at = lostAt ?? now();
    missing = setTimeout(() => { lostAt = at; drawBanner(); }, MISSED_SECONDS * 1000);
  } else if (lostAt !== null) {
    lostAt = null;
    drawBanner();
  }
}

function pulse(state) {
  missed(state);
  $("pulse").dataset.state = state;
  $("pulse").textContent = { live: "live", lost: "no connection", asleep: "paused", waiting: "connecting" }[state];
}

const known = new Map(); // open incidents, by id

function news(incident) {
  if (incident.state !== "open") known.delete(incident.id);
  else if (!known.has(incident.id)) {
    known.set(incident.id, true);
    put($("news"), `New incident, ${incident.severity}: `, sentence(incident.summary));
  }
}

const THEMES = { auto: "dark", dark: "light", light: "auto" };
const system = matchMedia("(prefers-color-scheme: dark)");

function theme(chosen) {
  document.documentElement.dataset.theme = (chosen === "auto" ? system.matches : chosen === "dark") ? "dark" : "light";
  $("theme").textContent = `Theme: ${chosen}`;
  dispatchEvent(new Event("longwatch:theme"));
}

export function nextTheme() {
  const next = THEMES[remembered("longwatch.theme") ?? "auto"];
  remember("longwatch.theme", next === "auto" ? null : next);
  theme(next);
}

function access() {
  $("access").textContent = session.writable ? "May write" : "Read only";
}

async function begin() {
  theme(remembered("longwatch.theme") ?? "auto");
  system.addEventListener("change", () => theme(remembered("longwatch.theme") ?? "auto"));
  $("theme").addEventListener("click", nextTheme);
  $("help").addEventListener("click", showHelp);
  $("access").addEventListener("click", askForToken);
  $("zone").textContent = zone();
  $("zone").setAttribute("aria-label", `in ${zone()}; change between UTC and this browser's zone`);
  $("zone").addEventListener("click", () => {
    remember("longwatch.zone", zone() === "UTC" ? null : "UTC");
    $("zone").textContent = zone();
    show();
  });
  $("skip").addEventListener("click", (event) => {
    event.preventDefault(); // its address would be a view's
    $("main").focus();
  });
  on("status", undefined, status);
  on("incident", undefined, news);
  on("state", undefined, pulse);
  session.addEventListener("change", access);
  setInterval(async () => document.hidden && get("/status").then(status, () => {}), HIDDEN_SECONDS * 1000);
  keys({ theme: nextTheme, help: showHelp });
  keepAges();
  addEventListener("hashchange", show);
  live.watch();
  await session.refresh().then(status, () => {});
  get("/incidents", { state: "open", limit: 200 })
    .then((found) => found.incidents.forEach((one) => known.set(one.id, true)), () => {});
  await show();
}

begin();
