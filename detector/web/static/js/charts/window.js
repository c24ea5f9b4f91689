// A stream's events: each feature's value against its forecast and band, the score against the threshold, which channel
// led, alerts and model swaps. One slider goes through the events, by mouse, finger and keys, and reads them out.

import { h, put, visible } from "../dom.js";
import { moment, number, plural, score as scoreText, secondOf, share } from "../format.js";
import { channelWord } from "../words.js";
import { colour, keepFitting, LEFT, timeAxis, tzDate, uPlot, valueAxis } from "./style.js";
import { alertSpans, drawAlerts, drawMarks, drawSwaps } from "./marks.js";
import { eventTable } from "./table.js";

const FEATURE_HEIGHT = 168;
const SCORE_HEIGHT = 118;
const MOST_SYMBOLS = 10; // named on an axis

let groups = 0;

/** Draw a window in an area. features: names in their order; update(window, features) draws anew. */
export function windowChart(area, { signal }) {
  const group = `window-${(groups += 1)}`;
  const panels = h("div", { class: "panels" });
  const readout = h("p", { class: "readout", "aria-hidden": "true" });
  const slider = h("input", { type: "range", class: "scrub", min: "0", value: "0", step: "1", "aria-label": "Event" });
  const note = h("p", { class: "note" });
  const table = h("details", { class: "as-table" }, h("summary", {}, "The same as a table"), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Events" }));
  put(area, legend(), panels, h("label", { class: "scrub-row" }, slider), readout, note, table);
  let shown = null;
  let features = [];
  let charts = [];
  let isLast = true; // the slider follows what comes, until it is moved

  slider.addEventListener("input", () => {
    isLast = Number(slider.value) === shown.time.length - 1;
    point(Number(slider.value), true);
  });
  table.addEventListener("toggle", () => table.open && shown && put(table.lastChild, eventTable(shown, features)));

  function destroy() {
    charts.forEach((one) => one.chart.destroy());
    charts = [];
  }

  function build() {
    destroy();
    if (!shown) return;
    put(panels);
    const width = Math.max(panels.clientWidth, 240);
    charts = features.map((feature) => featureChart(feature, width));
    charts.push(scoreChart(width));
    draw();
  }

  function add(title, height, options, data) {
    const caption = h("figcaption", {}, h("bdi", {}, title));
    const place = h("div", { class: "panel-chart" });
    panels.append(h("figure", { class: "panel" }, caption, place));
    const chart = new uPlot({
      width: Math.max(panels.clientWidth, 240), height, tzDate, legend: { show: false }, padding: [6, 10, 0, 0],
      cursor: { sync: { key: group, setSeries: false }, y: false, drag: { setScale: false }, points: { size: 7 } }, ...options,
    }, data(), place);
    return { chart, data, height, place, title };
  }

  function featureChart(feature) {
    const symbols = symbolsOf(shown.by_feature[feature]);
    const level = (value) => (symbols.length ? (typeof value === "string" ? symbols.indexOf(value) : null) : value);
    const data = () => {
      const own = shown.by_feature[feature];
      if (!own) return [shown.time, [], [], [], []];
      return [shown.time, own.lower, own.upper, own.expected.map(level), own.observed.map(level)];
    };
    const thin = { stroke: "transparent", points: { show: false } };
    const dots = symbols.length > 0;
    return add(visible(feature), FEATURE_HEIGHT, {
      scales: dots ? { y: { range: () => [-0.6, symbols.length - 0.4] } } : { y: { range: () => room(shown.by_feature[feature]) } },
      axes: [timeAxis(false), valueAxis(dots ? { splits: () => symbols.slice(0, MOST_SYMBOLS).map((_, i) => i), values: (_, at) => at.map((i) => visible(symbols[i] ?? "").slice(0, 8)) } : {})],
      bands: [{ series: [2, 1], fill: colour("band") }],
      series: [{}, thin, thin,
        { stroke: colour("expected"), width: 1.4, dash: [5, 4], points: { show: dots, size: 8, stroke: colour("expected") } },
        { stroke: dots ? "transparent" : colour("observed"), width: 1.4, points: { show: dots, size: 5, fill: colour("observed"), stroke: colour("observed") } }],
      hooks: { drawClear: [(u) => drawAlerts(u, shown)], draw: [(u) => drawMarks(u, shown, 4), (u) => drawSwaps(u, shown)], setCursor: [follow] },
    }, data);
  }

  function scoreChart() {
    const data = () => [shown.time, shown.threshold, shown.score];
    return add("score against threshold", SCORE_HEIGHT, {
      scales: { y: { range: (_, __, high) => [0, Math.max(6, (high ?? 1) * 1.15)] } },
      axes: [timeAxis(), valueAxis()],
      series: [{}, { stroke: colour("threshold"), width: 1.4, dash: [2, 3], points: { show: false } },
        { stroke: colour("observed"), width: 1.3, fill: colour("grid"), points: { show: false } }],
      hooks: { drawClear: [(u) => drawAlerts(u, shown)], draw: [(u) => drawMarks(u, shown, 2), (u) => drawSwaps(u, shown, true)], setCursor: [follow] },
    }, data);
  }

  let isPointing = false;
  function follow(u) {
    if (isPointing || u.cursor.idx === null || u.cursor.idx === undefined || u.cursor.left < 0) return;
    slider.value = u.cursor.idx;
    read(u.cursor.idx);
  }

  function point(i, isMarked) {
    isPointing = true;
    for (const { chart } of charts) {
      chart.setCursor(isMarked && shown.time.length ? { left: chart.valToPos(shown.time[i], "x"), top: 0 } : { left: -10, top: -10 }, false);
    }
    isPointing = false;
    read(i);
  }

  function read(i) {
    if (shown.time[i] === undefined) return;
    const words = spoken(i);
    put(readout, h("b", {}, `${moment(shown.time[i] * 1000).replace(/\d\d:\d\d$/, "")}${secondOf(shown.time[i] * 1000)}`),
      words.map((one) => h("span", {}, one)));
    slider.setAttribute("aria-valuetext", `${secondOf(shown.time[i] * 1000)}: ${words.join("; ")}`);
  }

  function spoken(i) {
    if (shown.silent && i === shown.time.length - 1) return ["no event"];
    const words = features.filter((feature) => shown.by_feature[feature]).map((feature) => {
      const own = shown.by_feature[feature];
      const band = own.lower[i] === null ? "" : ` [${number(own.lower[i])} .. ${number(own.upper[i])}]`;
      const part = own.contribution[i] ? `, share ${share(own.contribution[i])}` : "";
      return `${visible(feature)} ${visible(number(own.observed[i]))}, expected ${visible(number(own.expected[i]))}${band}${part}`;
    });
    words.push(`score ${scoreText(shown.score[i])} of ${scoreText(shown.threshold[i])}`);
    if (shown.channel[i]) words.push(channelWord(shown.channel[i]));
    if (shown.alert[i]) words.push("alert");
    return words;
  }

  function draw() {
    slider.max = String(Math.max(0, shown.time.length - 1));
    if (isLast) slider.value = slider.max;
    read(Number(slider.value));
    const summary = summaryOf(shown);
    note.textContent = [summary, shown.note].filter(Boolean).join(" ");
    for (const { place, title } of charts) {
      place.setAttribute("role", "img");
      place.setAttribute("aria-label", `${title}. ${summary}`);
    }
  }

  keepFitting(panels, signal, { resize: (width) => charts.forEach((one) => one.chart.setSize({ width: Math.max(width, 240), height: one.height })), build });
  signal.addEventListener("abort", destroy);
  return {
    update(window, chosen) {
      const isSame = shown && chosen.join("\n") === features.join("\n") && chosen.every((f) => !symbolsOf(window.by_feature[f]).length);
      shown = window;
      features = chosen;
      if (!isSame || !charts.length) build();
      else {
        charts.forEach((one) => one.chart.setData(one.data()));
        draw();
      }
      if (table.open) put(table.lastChild, eventTable(shown, features));
    },
  };
}

function symbolsOf(columns) {
  if (!columns) return [];
  return [...new Set([...columns.observed, ...columns.expected].filter((value) => typeof value === "string"))].sort();
}

const WIDEST = 0.05; // of a window's bands that may leave the chart: a young stream's first are far too wide

/** The range of a feature's chart: all values, and all bands but the widest. */
function room({ observed, expected, lower, upper } = { observed: [], expected: [], lower: [], upper: [] }) {
  const values = [...observed, ...expected].filter((value) => value !== null);
  const sorted = (bounds) => bounds.filter((value) => value !== null).sort((a, b) => a - b);
  const [lowest, highest] = [sorted(lower), sorted(upper)];
  const left = Math.floor(lowest.length * WIDEST);
  const all = [...values, ...lowest.slice(left, left + 1), ...highest.slice(highest.length - 1 - left, highest.length - left)];
  if (!all.length) return [0, 1];
  const [low, high] = all.reduce(([least, most], value) => [Math.min(least, value), Math.max(most, value)], [Infinity, -Infinity]);
  const margin = (high - low || Math.abs(high) * 0.1 || 1) * 0.1;
  return [low - margin, high + margin];
}

function summaryOf(shown) {
  const n = shown.time.length - (shown.silent ? 1 : 0); // the last is no event, but the end of what is silent
  if (!n) return "No events yet.";
  if (shown.silent) return `${plural(n, "event")} from ${moment(shown.time[0] * 1000)} to ${moment(shown.time[n - 1] * 1000)}, and none since.`;
  const spans = alertSpans(shown);
  const peak = shown.score.reduce((best, value, i) => (value > (shown.score[best] ?? -1) ? i : best), 0);
  const alerts = spans.length ? `${plural(spans.length, "alert")}; the` : "No alert; the";
  return `${plural(n, "event")} from ${moment(shown.time[0] * 1000)} to ${moment(shown.time[n - 1] * 1000)}. ${alerts} highest score was ${scoreText(shown.score[peak])} at ${secondOf(shown.time[peak] * 1000)}.`;
}

/** What lines and marks mean: each differs in form, not only in colour. */
function legend() {
  const item = (kind, word) => h("li", {}, h("span", { class: `sample ${kind}`, "aria-hidden": "true" }), word);
  return h("ul", { class: "legend", css: { "--left": `${LEFT}px` } },
    item("observed", "observed"), item("expected", "expected"), item("band", "where it would be ordinary"),
    item("threshold", "threshold"), item("alerting", "alert"), item("swap", "new model"));
}
