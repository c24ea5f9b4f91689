// When each alert of an incident began and ended, as a bar in the incident's time.

import { svg } from "../dom.js";
import { now, span } from "../format.js";

const WIDTH = 120;

export function lanes(incident, alert) {
  const ends = (one) => (one.ended_at ? Date.parse(one.ended_at) : now());
  const first = Math.min(...incident.alerts.map((one) => Date.parse(one.started_at)));
  const last = Math.max(...incident.alerts.map(ends), first + 1);
  const x = (at) => ((at - first) / (last - first)) * WIDTH;
  const [from, to] = [x(Date.parse(alert.started_at)), x(ends(alert))];
  const later = (Date.parse(alert.started_at) - first) / 1000;
  const title = later > 0 ? `${span(later)} after the first` : "with the first";
  return svg("svg", { class: `lane ${alert.ended_at ? "" : alert.severity}`, viewBox: `0 0 ${WIDTH} 12`, preserveAspectRatio: "none", role: "img", "aria-label": title },
    svg("title", {}, title),
    svg("rect", { class: "lane-ground", x: 0, y: 5, width: WIDTH, height: 2 }),
    svg("rect", { class: "lane-bar", x: from, y: 2, width: Math.max(3, Math.min(to - from, WIDTH - from)), height: 8, rx: 1.5 }));
}
