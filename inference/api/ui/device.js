// The device: its gauges with ten minutes of history, and what it is.

import { line } from "./chart.js";
import { byId, fill, h, memory, say } from "./dom.js";
import { clock, count, memoryOf, number, size, text, UNKNOWN } from "./format.js";
import { last, live } from "./live.js";

const SPAN_S = 600;

const GAUGES = {
  memory: { title: "Memory in use", unit: "%", low: 0, high: () => 100, read: memoryShare, under: memoryText },
  gpu: { title: "GPU", unit: "%", low: 0, high: () => 100, read: (d) => d.live.telemetry?.gpu.load_percent, under: gpuText },
  temperature: {
    title: "Hottest zone", unit: "°C", digits: 1, low: 20, high: (top) => Math.max(100, top),
    read: (d) => d.live.telemetry?.thermal.hottest_celsius, under: zoneText,
  },
  power: {
    title: "Power", unit: "W", digits: 1, low: 0, high: (top) => Math.max(10, Math.ceil(top / 4) * 5),
    read: (d) => d.live.telemetry?.power.total_watts, under: powerText,
  },
  load: {
    title: "CPU load", unit: "", digits: 2, low: 0, high: (top) => Math.max(1, Math.ceil(top)),
    read: (d) => d.live.telemetry?.load.average_1m, under: (d) => `1-minute average, ${text(d.static.cpu_cores)} cores`,
  },
  speed: {
    title: "Requests", unit: "running", low: 0, high: (top) => Math.max(4, top),
    read: () => last.status?.queue?.running, under: () => `${number(last.status?.queue?.waiting)} waiting`,
  },
};

let samples = memory.get("history", []); // [time in s, {gauge: value or null}]

/** Keep a sample of each answer; history outlives a reload of the page. */
export function start() {
  live.addEventListener("device", ({ detail }) => sample(detail));
  window.addEventListener("pagehide", () => memory.set("history", samples));
}

/** Show what is known now. */
export const enter = () => last.device && show(last.device);

function sample(device) {
  const now = Date.now() / 1000;
  const values = Object.fromEntries(Object.entries(GAUGES).map(([name, gauge]) => [name, gauge.read(device) ?? null]));
  samples = [...samples.filter(([time]) => time > now - SPAN_S && time <= now), [now, values]];
  if (!byId("view-device").hidden) show(device);
}

function show(device) {
  const { board, model } = device.static;
  say(byId("device-name"), [model ?? board ?? device.static.cpu_model ?? "unknown machine", device.static.power_mode].filter(Boolean).join(" · "));
  throttling(device);
  for (const [name, gauge] of Object.entries(GAUGES)) draw(name, gauge, device);
  facts(device);
}

// Each tile is made once and then changed, so that nothing jumps and readers are not interrupted.
function draw(name, gauge, device) {
  let tile = byId(`gauge-${name}`);
  if (!tile) {
    tile = h(
      "article",
      { class: "gauge", id: `gauge-${name}`, "aria-label": gauge.title },
      h("h2", {}, gauge.title),
      h("p", { class: "range small" }),
      h("p", { class: "value" }),
      h("div", { class: "plot" }),
      h("p", { class: "axis small", "aria-hidden": "true" }, h("span", { class: "since" }), h("span", {}, "now")),
      h("p", { class: "under small" }),
    );
    byId("gauges").append(tile);
  }
  const now = Date.now() / 1000;
  const points = samples.map(([time, values]) => [now - time, values[name] ?? null]);
  const known = points.map(([, value]) => value).filter((value) => value !== null);
  const value = gauge.read(device) ?? null;
  const [least, most] = [Math.min(...known), Math.max(...known)];
  const shown = number(value, gauge.unit, gauge.digits);
  const minutes = Math.min(Math.max(1, Math.ceil(points[0][0] / 60)), SPAN_S / 60);
  const moved = known.length > 0 && number(least, "", gauge.digits) !== number(most, "", gauge.digits);
  const range = moved ? `${number(least, "", gauge.digits)} to ${number(most, gauge.unit, gauge.digits)}` : "";
  say(tile.querySelector(".value"), shown);
  tile.classList.toggle("unknown", value === null);
  tile.classList.toggle("empty", known.length === 0);
  const high = gauge.high(known.length ? most : 0);
  const label = `${gauge.title}: now ${shown}${range && `, ${range} in ${minutes} min`}`;
  fill(tile.querySelector(".plot"), line(points, { span: minutes * 60, low: gauge.low, high, label }));
  say(tile.querySelector(".range"), range);
  say(tile.querySelector(".since"), `${minutes}\u00a0min ago`);
  say(tile.querySelector(".under"), gauge.under(device));
}

function memoryShare({ live: { memory: held } }) {
  const known = held.total_bytes && held.available_bytes !== null;
  return known ? 100 * (1 - held.available_bytes / held.total_bytes) : null;
}

function memoryText({ live: { memory: held } }) {
  return `${memoryOf(held.available_bytes)} free of ${memoryOf(held.total_bytes)}; models may take ${memoryOf(held.budget_bytes)}`;
}

function gpuText({ live: { telemetry } }) {
  const gpu = telemetry?.gpu;
  return gpu?.clock_hz ? `${clock(gpu.clock_hz)} of ${clock(gpu.clock_max_hz)}` : "";
}

function zoneText({ live: { telemetry } }) {
  const zones = (telemetry?.thermal.zones ?? []).filter((zone) => zone.temperature_celsius !== null);
  if (!zones.length) return "";
  return zones.reduce((a, b) => (b.temperature_celsius > a.temperature_celsius ? b : a)).name;
}

function powerText({ live: { telemetry } }) {
  return telemetry?.power.total_of.length ? `at ${telemetry.power.total_of.join(" + ")}` : "";
}

function throttling({ live: { telemetry } }) {
  const thermal = telemetry?.thermal;
  const state = thermal?.throttled ?? null;
  const [tone, words] = {
    true: ["bad", `Throttled by ${(thermal?.throttled_by ?? []).join(", ")}`],
    false: ["good", "Not throttled"],
    null: ["faint", "Throttling: unknown on this machine"],
  }[state];
  const box = byId("throttle");
  if (box.textContent === words) return;
  fill(box, h("p", { class: `state ${tone}`, role: "status" }, words));
}

function facts(device) {
  const { static: fixed, live: { telemetry } } = device;
  const groups = [
    ["Machine", machine(fixed)],
    ["Models in memory", (last.status?.workers ?? []).map((w) => [`${w.model} / ${w.variant}`, memoryOf(w.memory_observed_bytes)])],
    ["Temperatures", (telemetry?.thermal.zones ?? []).map((z) => [z.name, number(z.temperature_celsius, "°C", 1)])],
    ["Power rails", (telemetry?.power.rails ?? []).map((r) => [r.name, number(r.power_watts, "W", 2)])],
    ["Supply", supply(telemetry)],
    ["Swap and pressure", pressure(telemetry)],
    ["Fans", (telemetry?.fans ?? []).map((f) => [f.name, number(f.speed_percent, "%")])],
    ["Disks", (telemetry?.storage ?? []).map((d) => [d.name, `${size(d.size_bytes)}${d.model ? `, ${d.model}` : ""}`])],
  ];
  const now = JSON.stringify(groups);
  if (byId("facts").shown === now) return;
  byId("facts").shown = now;
  fill(byId("facts"), groups.map(([title, rows]) => group(title, rows)));
}

function group(title, rows) {
  const lines = rows.length ? rows : [["", title === "Models in memory" ? "none" : UNKNOWN]];
  const pair = ([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
  return h("section", { class: "group" }, h("h2", {}, title), h("dl", { class: "lines" }, lines.map(pair)));
}

const machine = (fixed) => [
  ["Board", text(fixed.board)],
  ["System on chip", text(fixed.soc)],
  ["CPU", `${text(fixed.cpu_model)}, ${count(fixed.cpu_cores, "core")}`],
  ["Memory", memoryOf(fixed.memory_total_bytes)],
  ["Memory bandwidth", fixed.bandwidth_bytes_per_s ? `${size(fixed.bandwidth_bytes_per_s)}/s` : UNKNOWN],
  ["Compute capability", text(fixed.compute_capability)],
  ["Jetson Linux", text(fixed.l4t)],
  ["JetPack", text(fixed.jetpack)],
  ["Power mode", text(fixed.power_mode)],
  ["Container", fixed.in_container ? text(fixed.image ?? "yes") : "no"],
];

const supply = (telemetry) => [
  ["Under-voltage", number(telemetry?.over_current.under_voltage_events, "events")],
  ["Over-current, average", number(telemetry?.over_current.average_events, "events")],
  ["Over-current, instantaneous", number(telemetry?.over_current.instantaneous_events, "events")],
];

function pressure(telemetry) {
  const { swap, pressure: stall } = telemetry ?? {};
  const used = (of, all) => (of == null || all == null ? UNKNOWN : all ? `${memoryOf(of)} of ${memoryOf(all)}` : "none");
  return [
    ["zram", used(swap?.zram_used_bytes, swap?.zram_bytes)],
    ["Swap file", used(swap?.file_used_bytes, swap?.file_bytes)],
    ["Stalled on memory, 10 s", number(stall?.some_avg10_percent, "%", 1)],
  ];
}
