// One stream: its events as they are scored, its forecast, what the network remembers of it.

import { get, offers } from "../api.js";
import { heatStrip } from "../charts/strip.js";
import { windowChart } from "../charts/window.js";
import { literal, mute, reset } from "../dialogs.js";
import { h, put, visible } from "../dom.js";
import { count, number, score, span } from "../format.js";
import { live, on } from "../live.js";
import { fact, when } from "../parts.js";
import { link, readdress, setTitle, streamLink } from "../router.js";
import { guarded } from "./guarded.js";
import { append, spanOf } from "./columns.js";
import { mutesOf } from "./mutes.js";

const LENGTHS = [100, 300, 1000];
const SHOWN = 3; // features at first
const MOST = 6; // features at once
const REFRESH_SECONDS = 5;

export async function showStream({ main, id, query, signal }) {
  const name = query.get("name") ?? id;
  readdress(streamLink(name));
  setTitle(visible(name).slice(0, 80));
  const [now, window, has] = await Promise.all([
    get("/stream", { name }, signal).catch(nothing404), get("/stream/window", { name, events: LENGTHS.at(-1) }, signal).catch(nothing404), offered()]);
  if (!now || !window) return unknown(main, name);
  let stream = now;
  let firing = null; // the alert that is shaded as it goes on
  let shade = null; // from when to when it fires
  let events = LENGTHS[1];
  let shown = window;
  let chosen = new Set();

  const facts = h("p", { class: "facts" });
  const mutes = h("div", {});
  let drawn = "[]"; // the mutes that are shown
  const area = h("div", {});
  const chooser = h("fieldset", { class: "chooser" });
  const length = h("select", { "aria-label": "How many events" }, LENGTHS.map((n) => h("option", { value: n, selected: n === events }, `last ${count(n)} events`)));
  const waiting = h("p", { class: "empty" });
  const extra = h("div", {});
  const chart = windowChart(area, { signal });
  put(main, h("a", { class: "back", href: "#/streams" }, "Streams"),
    h("header", { class: "lead" }, h("h1", {}, h("bdi", { class: "name" }, visible(name))), facts, buttons(), mutes),
    h("section", { class: "section", "aria-label": "Events" }, h("div", { class: "filters" }, chooser, length), h("div", { class: "card pad" }, waiting, area)), extra);

  function buttons() {
    return h("div", { class: "actions after" },
      has.mute ? guarded("Mute", "mute", async () => (await mute(literal(name), stream.last_event_at)) && reload()) : null,
      has.reset ? guarded("Reset", "reset", async () => (await reset(name)) && reload()) : null);
  }

  function drawFacts(one) {
    put(facts,
      one.firing ? h("a", { class: "tag alerting", href: link(`/alerts/${encodeURIComponent(one.firing)}`) }, "alert: see why") : null,
      one.warming ? h("span", { class: "tag" }, "warming up") : null,
      one.muted ? h("span", { class: "tag" }, "muted") : null,
      one.score === null ? null : fact("score", `${score(one.score)} of ${score(one.threshold)}`),
      h("span", {}, "last event ", when(one.last_event_at, { ago: true })),
      one.interval_seconds === null ? null : fact("usual gap", span(one.interval_seconds)),
      fact("events", count(one.events)), one.rule ? fact("rule", one.rule) : null);
    const face = JSON.stringify(one.mutes);
    if (face !== drawn) put(mutes, mutesOf(one, reload));
    drawn = face;
  }

  async function reload() {
    stream = await get("/stream", { name }, signal);
    drawFacts(stream);
    await markAlert();
  }

  /** Find from when to when the stream's last alert fires, to shade it. */
  async function markAlert() {
    if (stream.firing === firing) return;
    const id = stream.firing ?? firing; // one that has ended meanwhile
    firing = stream.firing;
    shade = spanOf((await get(`/alerts/${encodeURIComponent(id)}`, {}, signal)).alert);
    draw();
  }

  function names() {
    return [...new Set([...stream.feature_names, ...shown.features])];
  }

  let choices = "";
  function drawChooser() {
    const all = names();
    if (!chosen.size) chosen = new Set(leading(all).slice(0, SHOWN));
    if (choices === all.join("\n")) return;
    choices = all.join("\n");
    put(chooser, h("legend", { class: "unseen" }, "Features to show"), all.map((feature) =>
      h("label", { class: "choice" }, h("input", { type: "checkbox", checked: chosen.has(feature), on: { change: (event) => choose(feature, event.target) } }), h("bdi", {}, visible(feature)))));
    chooser.hidden = all.length < 2;
  }

  /** The features with the largest share in the highest score first. */
  function leading(all) {
    const peak = shown.score.reduce((best, value, i) => (value > shown.score[best] ? i : best), 0);
    const part = (feature) => shown.by_feature[feature]?.contribution[peak] ?? 0;
    return [...all].sort((a, b) => part(b) - part(a));
  }

  function choose(feature, box) {
    if (box.checked && chosen.size >= MOST) box.checked = false;
    else if (box.checked) chosen.add(feature);
    else if (chosen.size > 1) chosen.delete(feature);
    else box.checked = true;
    draw();
  }

  function draw() {
    drawChooser();
    const isEmpty = !shown.time.length;
    waiting.hidden = !isEmpty;
    area.hidden = isEmpty;
    waiting.textContent = "Waiting for its next event.";
    if (!isEmpty) chart.update({ ...cut(shown, events), span: shade }, names().filter((one) => chosen.has(one)));
  }

  length.addEventListener("change", () => { events = Number(length.value); draw(); });
  on("points", signal, (points) => {
    if (points.stream !== name) return;
    shown = append(shown, points, LENGTHS.at(-1));
    requestAnimationFrame(() => signal.aborted || draw());
  });
  // what came between the answer above and the connection's first word, or while there was none
  on("state", signal, (state) => state === "live" && get("/stream/window", { name, events: LENGTHS.at(-1) }, signal).then((found) => {
    shown = append(found, shown, LENGTHS.at(-1));
    draw();
  }, () => {}));
  live.watch(name);
  signal.addEventListener("abort", () => live.watch(""));
  const timer = setInterval(() => document.hidden || reload().catch(() => {}), REFRESH_SECONDS * 1000);
  signal.addEventListener("abort", () => clearInterval(timer));
  drawFacts(stream);
  markAlert().catch(() => {});
  requestAnimationFrame(() => signal.aborted || draw());
  drawAhead(extra, { name, has, signal, features: names });
}

const nothing404 = (error) => {
  if (error.status !== 404) throw error;
  return null;
};

function unknown(main, name) {
  put(main, h("a", { class: "back", href: "#/streams" }, "Streams"),
    h("div", { class: "card fault" }, h("h1", {}, "No such stream is known"), h("p", {}, h("bdi", { class: "name" }, visible(name))),
      h("p", { class: "soft" }, "It has sent nothing here, its name is another, or it has been forgotten."),
      h("p", { class: "actions after" }, h("a", { class: "button", href: link("/streams", { q: name }) }, "Search for it"))));
}

const cut = (window, events) => append(window, null, events);

async function offered() {
  const [mutes, resets, forecast, hidden] = await Promise.all([
    offers("POST", "/mutes"), offers("POST", "/stream/reset"), offers("GET", "/stream/forecast"), offers("GET", "/stream/hidden")]);
  return { mute: mutes, reset: resets, forecast, hidden };
}

/** What is expected next, and the network's memory; asked for when it is opened. */
function drawAhead(extra, { name, has, signal, features }) {
  if (has.forecast) extra.append(onDemand("Forecast", async (place) => {
    const found = await get("/stream/forecast", { name }, signal);
    put(place, h("table", { class: "shares" }, h("thead", {}, h("tr", {}, ["feature", "events ahead", "expected", "band"].map((word, i) => h("th", { scope: "col", class: i ? "number" : "" }, word)))),
      h("tbody", {}, Object.entries(found.features).flatMap(([feature, one]) => one.horizons.map((ahead, i) => h("tr", {},
        h("th", { scope: "row" }, h("bdi", {}, visible(feature))), h("td", { class: "number" }, count(ahead)), h("td", { class: "number" }, number(one.expected[i])),
        h("td", { class: "number" }, `${number(one.lower[i])} .. ${number(one.upper[i])}`)))))));
  }));
  if (has.hidden) extra.append(onDemand("Hidden state", async (place) => {
    const pick = h("select", { "aria-label": "Feature" }, features().map((one) => h("option", { value: one }, visible(one))));
    const strip = h("div", { class: "after" });
    const load = async () => {
      try {
        heatStrip(strip, await get("/stream/hidden", { name, feature: pick.value }, signal), signal);
      } catch (error) {
        put(strip, h("p", { class: "refused" }, error.message));
      }
    };
    pick.addEventListener("change", load);
    put(place, pick, strip);
    await load();
  }));
}

function onDemand(title, load) {
  const place = h("div", { class: "card pad" });
  const element = h("details", { class: "section" }, h("summary", {}, title), place);
  element.addEventListener("toggle", async () => {
    if (!element.open) return;
    if (!place.hasChildNodes()) put(place, h("p", { class: "soft" }, "Loading …"));
    try {
      await load(place);
    } catch (error) {
      put(place, h("p", { class: "refused" }, error.message));
    }
  });
  return element;
}
