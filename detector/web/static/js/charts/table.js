// A chart's events as a table, the newest first: for whoever does not see the chart.

import { h, visible } from "../dom.js";
import { moment, number, score, secondOf } from "../format.js";
import { channelWord } from "../words.js";

const MOST = 100; // events

export function eventTable(window, features) {
  const head = ["time", ...features.flatMap((one) => [`${visible(one)}, observed`, "expected", "band"]), "score", "threshold", "channel", "alert"];
  const n = window.time.length;
  const rows = Array.from({ length: Math.min(MOST, n) }, (_, k) => n - 1 - k);
  return h("table", {}, h("caption", { class: "unseen" }, `The last ${rows.length} events, the newest first`),
    h("thead", {}, h("tr", {}, head.map((word) => h("th", { scope: "col" }, word)))),
    h("tbody", {}, rows.map((i) => h("tr", {},
      h("th", { scope: "row", title: moment(window.time[i] * 1000) }, secondOf(window.time[i] * 1000)),
      features.flatMap((feature) => cells(window.by_feature[feature], i)),
      h("td", { class: "number" }, score(window.score[i])), h("td", { class: "number" }, score(window.threshold[i])),
      h("td", {}, channelWord(window.channel[i])), h("td", {}, window.alert[i] ? "alert" : "")))));
}

function cells(columns, i) {
  if (!columns) return [h("td", {}), h("td", {}), h("td", {})];
  const band = columns.lower[i] === null ? "–" : `${number(columns.lower[i])} .. ${number(columns.upper[i])}`;
  return [h("td", { class: "number" }, visible(number(columns.observed[i]))), h("td", { class: "number" }, visible(number(columns.expected[i]))), h("td", { class: "nowrap" }, band)];
}
