// What is drawn over and under the lines: spans that alert, the events themselves, and where a model was replaced.

import { channelWord } from "../words.js";
import { colour } from "./style.js";

/** Return [first, last] of each run of events that alert. */
export function alertSpans(window) {
  const spans = [];
  window.alert.forEach((is, i) => {
    if (!is) return;
    if (spans.length && spans.at(-1)[1] === i - 1) spans.at(-1)[1] = i;
    else spans.push([i, i]);
  });
  return spans;
}

/** Shade the span of the alert that a window is of, and within it the events that crossed the threshold. */
export function drawAlerts(u, window) {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  const at = (time) => u.valToPos(time, "x", true);
  const spans = alertSpans(window).map(([first, last]) => [at(window.time[first]), at(window.time[last])]);
  const [from, to] = window.span ?? [];
  if (from !== undefined && to >= window.time[0]) spans.push([Math.max(at(from), bbox.left), at(Math.min(to, window.time.at(-1)))]);
  for (const [left, right] of spans) {
    const width = Math.max(right - left, 6 * devicePixelRatio);
    ctx.fillStyle = colour("alerting");
    ctx.fillRect(left - 2 * devicePixelRatio, bbox.top, width + 4 * devicePixelRatio, bbox.height);
    ctx.fillStyle = colour("warning-mark");
    ctx.fillRect(left - 2 * devicePixelRatio, bbox.top, width + 4 * devicePixelRatio, 3 * devicePixelRatio);
  }
  ctx.restore();
}

/** Mark the events that alert with a diamond; `series`: on which line. */
export function drawMarks(u, window, series) {
  const { ctx } = u;
  const size = 4.5 * devicePixelRatio;
  ctx.save();
  ctx.fillStyle = colour("critical-mark");
  ctx.strokeStyle = colour("card");
  ctx.lineWidth = devicePixelRatio;
  for (const [first, last] of alertSpans(window)) {
    for (let i = first; i <= last; i += 1) {
      const value = u.data[series][i];
      if (value === null || value === undefined || window.time[i] < u.scales.x.min) continue;
      const x = u.valToPos(window.time[i], "x", true);
      const y = u.valToPos(value, "y", true);
      ctx.beginPath();
      ctx.moveTo(x, y - size);
      ctx.lineTo(x + size, y);
      ctx.lineTo(x, y + size);
      ctx.lineTo(x - size, y);
      ctx.closePath();
      ctx.fill();
      ctx.stroke();
    }
    if (series === 2) label(u, window, first);
  }
  ctx.restore();
}

function label(u, window, i) {
  const { ctx, bbox } = u;
  const word = channelWord(window.channel[i]);
  ctx.font = `600 ${11 * devicePixelRatio}px sans-serif`;
  ctx.fillStyle = colour("ink");
  const gap = 8 * devicePixelRatio;
  const x = u.valToPos(window.time[i], "x", true);
  const fits = x + gap + ctx.measureText(word).width <= bbox.left + bbox.width;
  ctx.textAlign = fits ? "left" : "right"; // beside the mark, on the side that has the room
  ctx.fillText(word, fits ? x + gap : x - gap, bbox.top + 16 * devicePixelRatio);
}

/** Draw a dotted line where another model began to score; `isNamed`: with its version. */
export function drawSwaps(u, window, isNamed = false) {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.strokeStyle = colour("strong");
  ctx.fillStyle = colour("soft");
  ctx.textAlign = "left";
  ctx.setLineDash([2 * devicePixelRatio, 3 * devicePixelRatio]);
  ctx.font = `${11 * devicePixelRatio}px sans-serif`;
  for (const { time, version } of window.models.slice(1)) {
    const x = u.valToPos(time, "x", true);
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    if (isNamed) ctx.fillText(`model ${version.slice(0, 8)}`, x + 4 * devicePixelRatio, bbox.top + bbox.height - 5 * devicePixelRatio);
  }
  ctx.restore();
}
