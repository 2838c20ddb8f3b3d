// A line over the last ten minutes; where nothing was known the line has a gap.

import { svg } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 64;
const PAD = 3;

/** Draw *points*, [age in s, value or null], oldest first; *span* in s; low and high bound the axis. */
export function line(points, { span, low, high, label }) {
  const x = (age) => WIDTH - (age / span) * WIDTH;
  const y = (value) => HEIGHT - PAD - ((clamp(value, low, high) - low) / (high - low || 1)) * (HEIGHT - 2 * PAD);
  const chart = svg("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    preserveAspectRatio: "none",
    class: "chart",
    role: "img",
    "aria-label": label,
  });
  for (const part of [0.25, 0.5, 0.75]) {
    chart.append(svg("line", { x1: 0, x2: WIDTH, y1: HEIGHT * part, y2: HEIGHT * part, class: "grid-line" }));
  }
  for (const run of runs(points)) {
    const at = run.map(([age, value]) => `${x(age).toFixed(1)},${y(value).toFixed(1)}`);
    const [first, end] = [x(run[0][0]).toFixed(1), x(run.at(-1)[0]).toFixed(1)];
    chart.append(svg("path", { d: `M${first},${HEIGHT} L${at.join(" L")} L${end},${HEIGHT} Z`, class: "area" }));
    chart.append(svg("path", { d: `M${at.join(" L")}`, class: "line" }));
  }
  return chart;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function runs(points) {
  const found = [];
  let run = [];
  for (const [i, point] of points.entries()) {
    const cut = point[1] === null || (i > 0 && points[i - 1][0] - point[0] > 10);
    if (cut && run.length) {
      found.push(run);
      run = [];
    }
    if (point[1] !== null) run.push(point);
  }
  if (run.length) found.push(run);
  return found;
}
