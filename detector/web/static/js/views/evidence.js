// The channel's own numbers as a picture: a band, what was expected, what came; the same numbers below it in words.

import { h, svg, visible } from "../dom.js";
import { number, share, span } from "../format.js";
import { EVIDENCE } from "../words.js";

const WIDTH = 400;
const PLACES = { // by channel: which number is the value, which the centre it is far from
  forecast: ["observed", "expected"],
  level: ["level", "usual"],
  coupling: ["observed", "expected"],
  novel: ["observed", "nearest"],
  still: ["seconds", "usual_longest_seconds"],
  symbol: ["observed_probability", "expected_probability"],
  silence: ["silent_seconds", "usual_seconds"],
};
const FROM_ZERO = ["still", "symbol", "silence"];

export function evidenceFigure(alert) {
  const evidence = alert.evidence ?? {};
  const names = Object.keys(evidence).filter((key) => Number.isFinite(evidence[key]));
  if (!names.length) return null;
  const [value, centre] = PLACES[alert.channel] ?? [];
  const other = evidence[centre] === undefined && evidence.expected !== undefined ? "expected" : centre;
  const drawn = evidence[value] !== undefined && evidence[other] !== undefined ? bullet(evidence, value, other, alert) : null;
  return h("figure", { class: "evidence" }, drawn,
    h("dl", { class: "figures" }, names.map((key) => h("div", {}, h("dt", {}, EVIDENCE[key] ?? key), h("dd", {}, inWords(key, evidence[key]))))),
    symbols(alert));
}

function bullet(evidence, value, centre, alert) {
  const known = [evidence[value], evidence[centre], evidence.lower, evidence.upper].filter(Number.isFinite);
  const low = FROM_ZERO.includes(alert.channel) ? 0 : Math.min(...known);
  const high = Math.max(...known);
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  const x = (at) => ((at - low + room) / (high - low + 2 * room)) * WIDTH;
  const label = `${EVIDENCE[value]} ${inWords(value, evidence[value])}, ${EVIDENCE[centre]} ${inWords(centre, evidence[centre])}`;
  const at = x(evidence[value]);
  return svg("svg", { class: "bullet", viewBox: `0 0 ${WIDTH} 40`, role: "img", "aria-label": label },
    svg("line", { class: "bullet-line", x1: 0, x2: WIDTH, y1: 20, y2: 20 }),
    Number.isFinite(evidence.lower) && Number.isFinite(evidence.upper)
      ? svg("rect", { class: "bullet-band", x: x(evidence.lower), y: 11, width: Math.max(2, x(evidence.upper) - x(evidence.lower)), height: 18, rx: 2 }) : null,
    svg("line", { class: "bullet-gap", x1: x(evidence[centre]), x2: at, y1: 20, y2: 20 }),
    svg("line", { class: "bullet-centre", x1: x(evidence[centre]), x2: x(evidence[centre]), y1: 7, y2: 33 }),
    svg("path", { class: "bullet-value", d: `M${at} 11 L${at + 9} 20 L${at} 29 L${at - 9} 20 Z` }));
}

function inWords(key, value) {
  if (key.includes("seconds")) return span(value);
  return key.includes("probability") ? share(value) : number(value);
}

function symbols(alert) {
  if (alert.channel !== "symbol" || !alert.feature) return null;
  return h("p", {}, "came ", h("b", { class: "name" }, visible(alert.observed?.[alert.feature] ?? "–")), ", likeliest was ", h("b", { class: "name" }, visible(alert.expected?.[alert.feature] ?? "–")));
}
