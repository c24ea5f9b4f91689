// One figure over time, small.

import { moment } from "../format.js";
import { colour, keepFitting, short, timeAxis, tzDate, uPlot, valueAxis } from "./style.js";

const HEIGHT = 128;

/** Make a chart in an area: update(time, values) draws; its label says the range to whoever cannot see it. */
export function smallChart(area, { label, format, signal, isTime = true }) {
  let chart = null;
  let data = [[], []];

  function build() {
    chart?.destroy();
    const plain = { ...timeAxis(), values: (_, splits) => splits.map(short) };
    chart = new uPlot({
      width: Math.max(area.clientWidth, 120), height: HEIGHT, tzDate, legend: { show: false },
      padding: [8, 26, 0, 0], cursor: { y: false, drag: { setScale: false } },
      scales: { x: { time: isTime }, y: { range: (_, low, high) => range(low, high, isTime) } },
      axes: [isTime ? timeAxis() : plain, valueAxis({ values: (_, splits) => once(splits.map((v) => compact(format(v)))) })],
      series: [{}, { stroke: colour("expected"), width: 1.6, fill: colour("band"), points: { show: false } }],
      hooks: { setCursor: [(u) => (area.dataset.at = reading(u.cursor.idx))] },
    }, data, area);
  }

  function reading(i) {
    if (i === null || i === undefined || data[1][i] === null || data[1][i] === undefined) return "";
    return `${isTime ? moment(data[0][i] * 1000) : `step ${i + 1}`}: ${format(data[1][i])}`;
  }

  area.setAttribute("role", "img");
  keepFitting(area, signal, { resize: (width) => chart?.setSize({ width: Math.max(width, 120), height: HEIGHT }), build });
  return {
    update(time, values) {
      data = [time, values];
      if (chart) chart.setData(data);
      else build();
      const known = values.filter((value) => value !== null);
      area.setAttribute("aria-label", known.length
        ? `${label}: from ${format(Math.min(...known))} to ${format(Math.max(...known))}, last ${format(known.at(-1))}`
        : `${label}: no points yet, the first comes within ten seconds`);
      area.classList.toggle("is-empty", known.length < 2);
    },
  };
}

/** For an axis one unit is enough: 2 h 47 min is about 2 h. */
const compact = (text) => String(text).replace(/,000$/, "k").replace(/^(\d+ (?:d|h)) .*/, "≈ $1");

/** Leave out what an axis would say twice. */
const once = (texts) => texts.map((text, i) => (text === texts[i - 1] ? "" : text));

function range(low, high, fromZero) {
  if (low === null || high === null) return [0, 1];
  const room = (high - low || Math.abs(high) || 1) * 0.12;
  return fromZero ? [0, high + room || 1] : [low - room, high + room];
}
