// One alert: the channel that fired with its own numbers, the features by share, and what the stream looked like.

import { get, offers } from "../api.js";
import { windowChart } from "../charts/window.js";
import { literal, mute, reset, verdict } from "../dialogs.js";
import { h, put, visible } from "../dom.js";
import { now as shownNow, number, score, share } from "../format.js";
import { fact, sentence, severity, signature, when } from "../parts.js";
import { streamLink } from "../router.js";
import { CHANNELS, channelWord, endedBy } from "../words.js";
import { append, spanOf } from "./columns.js";
import { evidenceFigure } from "./evidence.js";
import { guarded } from "./guarded.js";
import { mutesOf } from "./mutes.js";

const SHARES = 8; // features shown
const CHARTS = 3; // features drawn

export async function showDetail(area, id, { signal, changed }) {
  const [detail, canJudge, canMute, canReset] = await Promise.all([
    get(`/alerts/${encodeURIComponent(id)}`, {}, signal),
    offers("POST", "/alerts/{id}/verdict"), offers("POST", "/mutes"), offers("POST", "/stream/reset")]);
  const { alert } = detail;
  const stream = await now(alert.stream, signal);
  const act = async (done) => (await done) && changed();
  const chartArea = h("div", {});
  put(area,
    h("div", { class: "card pad" },
      h("div", { class: "detail-head" }, h("h2", {}, h("a", { class: "name stream-link", href: streamLink(alert.stream) }, h("bdi", {}, visible(alert.stream)))), severity(alert)),
      h("p", { class: "finding" }, sentence(alert.summary ?? "")),
      h("p", { class: "facts" }, h("span", {}, "since ", h("b", {}, when(alert.started_at))),
        alert.ended_at ? h("span", {}, "until ", h("b", {}, when(alert.ended_at)), alert.resolved_by ? `: ${endedBy(alert)}` : "") : null,
        isSilence(alert) ? null : fact("score", `${score(alert.score)} of ${score(alert.threshold)}`), alert.return_period ? h("span", {}, alert.return_period) : null,
        detail.verdict ? h("span", {}, "marked ", h("b", {}, detail.verdict), " by ", signature(detail.judged)) : null),
      h("div", { class: "why-grid" },
        h("section", {}, h("h3", {}, `Why: ${channelWord(alert.channel)}`), h("p", { class: "note" }, CHANNELS[alert.channel]?.[1] ?? ""), evidenceFigure(alert)),
        features(alert)),
      h("div", { class: "actions after" },
        canJudge && detail.verdict !== "false" ? guarded(detail.verdict ? "False after all" : "False alarm", "false", () => act(verdict(alert, "false"))) : null,
        canJudge && detail.verdict !== "right" ? guarded(detail.verdict ? "Right after all" : "Right", "right", () => act(verdict(alert, "right"))) : null,
        canMute ? guarded("Mute the stream", "mute-stream", () => act(mute(literal(alert.stream), stream?.last_event_at))) : null,
        canReset ? guarded("Reset the stream", "reset", () => act(reset(alert.stream))) : null,
        h("a", { class: "button", href: streamLink(alert.stream) }, "See the stream live"))),
    mutesOf(stream, changed),
    chartArea,
    h("details", { class: "after" }, h("summary", {}, "Where it came from"), origin(alert)));
  const around = detail.samples?.time.length ? detail.samples : await nearby(alert, signal);
  const samples = around && marked(around, alert);
  if (!samples) {
    put(chartArea, h("p", { class: "card empty after" }, detail.samples?.note || "What its stream did around it is not kept here any more: the settings history.days and history.max_bytes say how much is."));
    return;
  }
  const chartPlace = h("div", {});
  put(chartArea, h("section", { class: "card pad after", "aria-label": "Around the alert" }, chartPlace));
  const chart = windowChart(chartPlace, { signal });
  requestAnimationFrame(() => signal.aborted || chart.update(samples, leading(alert, samples)));
}

/** The alert's stream as it is now; null: it is not known here any more. */
async function now(name, signal) {
  try {
    return await get("/stream", { name }, signal);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return null;
  }
}

/** What the stream looked like then, where somebody was looking at it; null: nobody was. */
async function nearby(alert, signal) {
  try {
    const window = await get("/stream/window", { name: alert.stream, events: 1000 }, signal);
    const at = Date.parse(alert.started_at) / 1000;
    return window.time.length && window.time[0] <= at && at <= window.time.at(-1) + 1e-3 ? window : null;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return null; // the stream is not known here any more
  }
}

const isSilence = (alert) => alert.channel === "silence";

/** A window with the time in which an alert fired, which is drawn; where nothing came since, it goes on up to the end. */
function marked(window, alert) {
  const [from, to] = spanOf(alert);
  const last = window.time.at(-1);
  const end = Math.min(to, Math.max(shownNow() / 1000, from + (alert.evidence?.silent_seconds ?? 0)));
  const shown = { ...window, span: [from, to] };
  if (!isSilence(alert) || last > from + 1 || end <= last) return shown;
  const nothing = { ...EMPTY, time: [end], score: [null], threshold: [null], channel: [""], alert: [false] };
  return { ...append(shown, nothing, window.time.length + 1), silent: true };
}

const EMPTY = { features: [], models: [], by_feature: {} };

function leading(alert, samples) {
  const part = (feature) => alert.contributions?.[feature] ?? 0;
  return [...samples.features].sort((a, b) => part(b) - part(a)).slice(0, CHARTS);
}

function features(alert) {
  const all = Object.entries(alert.contributions ?? {}).sort((a, b) => b[1] - a[1]);
  if (!all.length) return null;
  const rows = all.slice(0, SHARES).map(([feature, part]) => h("tr", {},
    h("th", { scope: "row" }, h("bdi", {}, visible(feature))),
    h("td", { class: "number" }, visible(number(alert.observed?.[feature]))),
    h("td", { class: "number soft" }, visible(number(alert.expected?.[feature]))),
    h("td", { class: "share" }, h("span", { class: "share-bar", "aria-hidden": "true", css: { "--share": String(part) } }), h("span", {}, share(part)))));
  const left = all.length - SHARES + (alert.features_left_out ?? 0);
  return h("section", {}, h("h3", {}, all.length > 1 ? "Features by share" : "Feature"),
    h("table", { class: "shares" }, h("thead", {}, h("tr", {}, [["feature", ""], ["observed", "number"], ["expected", "number"], ["share", ""]].map(([word, kind]) => h("th", { scope: "col", class: kind }, word)))), h("tbody", {}, rows)),
    left > 0 ? h("p", { class: "note" }, `and ${left} more`) : null);
}

function origin(alert) {
  const rows = [["alert", alert.id], ["topic or file", alert.topic], ["partition", alert.partition], ["offset", alert.offset], ["model", alert.model_version]];
  return h("dl", { class: "figures small" }, rows.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", { class: "name" }, visible(value ?? "–")))));
}
