// The models: what each is, where it stands, and what can be done with it.

import { get } from "./api.js";
import { all, catalog, reload } from "./catalog.js";
import { byId, fill, h, say } from "./dom.js";
import { count, duration, memoryOf, number, size, text, UNKNOWN, words } from "./format.js";
import { last, live } from "./live.js";
import { build, dismiss, load, of, problemOf, pull, remove, unload, work } from "./work.js";

const cards = new Map(); // model -> {node, shown}
const STATES = { ready: "Loaded", starting: "Loading", queued: "Queued", stopping: "Unloading", failed: "Failed" };

/** Listen to what changes the list. */
export function start() {
  catalog.addEventListener("change", show);
  work.addEventListener("change", ({ detail }) => update(all().find((model) => model.id === detail)));
  live.addEventListener("status", () => all().filter((m) => m.state !== "absent").forEach(update));
  byId("find").addEventListener("input", show);
  document.querySelectorAll("input[name=show]").forEach((radio) => radio.addEventListener("change", show));
}

/** Ask anew: another program may have pulled or removed. */
export const enter = () => reload().catch(() => null);

function show() {
  const kind = document.querySelector("input[name=show]:checked").value;
  const wanted = byId("find").value.trim().toLowerCase();
  const found = all().filter((model) => (kind === "all" || model[kind]) && matches(model, wanted));
  const list = found.sort((a, b) => rank(a) - rank(b)).map(card);
  if (list.some((node, i) => byId("models").children[i] !== node) || byId("models").children.length !== list.length) {
    const focused = document.activeElement;
    fill(byId("models"), list.length ? list : h("li", { class: "hint" }, "Nothing is found."));
    if (byId("models").contains(focused)) focused.focus();
  }
  const loaded = all().filter((model) => model.state === "ready").length;
  const pulled = all().filter((model) => model.pulled).length;
  say(byId("models-count"), `${list.length} shown · ${loaded} loaded · ${pulled} on disk`);
}

const rank = (model) => (model.state !== "absent" ? 0 : model.pulled ? 1 : model.usable ? 2 : 3);

const matches = (model, wanted) =>
  [model.id, model.name, model.license, model.status, ...model.aliases, ...model.use_cases.map(words)].some((value) =>
    String(value ?? "").toLowerCase().includes(wanted),
  );

function card(model) {
  if (!cards.has(model.id)) cards.set(model.id, { node: h("li", { class: "model" }), shown: null, open: false });
  update(model);
  return cards.get(model.id).node;
}

// A card is made anew only when something on it changed; whoever stands on a button keeps standing there.
function update(model) {
  const held = model && cards.get(model.id);
  if (!held) return;
  const workers = (last.status?.workers ?? []).filter((worker) => worker.model === model.id);
  const job = of(model.id);
  const figures = workers.map((w) => [w.variant, w.state, w.pinned, memoryOf(w.memory_observed_bytes)]);
  const now = JSON.stringify([model, figures, job && Boolean(job.cancel), problemOf(model.id)?.message]);
  if (now === held.shown) return job && advance(held.node, model, job);
  held.shown = now;
  const action = held.node.contains(document.activeElement) && document.activeElement.dataset.act;
  const places = [...held.node.querySelectorAll(".scroll")].map((box) => [box.scrollLeft, box.scrollTop]);
  fill(held.node, body(model, workers, job, held));
  held.node.querySelectorAll(".scroll").forEach((box, i) => places[i] && box.scrollTo(...places[i]));
  if (!action) return;
  const buttons = [...held.node.querySelectorAll("[data-act]")];
  (buttons.find((button) => button.dataset.act === action) ?? buttons[0])?.focus();
}

function body(model, workers, job, held) {
  const problem = problemOf(model.id);
  return [
    h(
      "div",
      { class: "model-head" },
      h("h2", {}, model.name),
      h("span", { class: "badges" }, badges(model, workers)),
      !job && h("div", { class: "actions" }, actions(model, workers)),
      h("p", { class: "small" }, h("code", {}, model.id), ` · ${model.use_cases.map(words).join(", ") || UNKNOWN}`),
    ),
    job && progress(model, job),
    h("dl", { class: "pairs" }, pairs(model, workers)),
    model.issue && h("p", { class: "note" }, model.issue),
    problem &&
      h(
        "div",
        { class: "failure", role: "alert" },
        h("p", {}, h("strong", {}, problem.message)),
        problem.hint && h("p", {}, problem.hint),
        h("p", { class: "actions" }, button("Dismiss", "dismiss", () => dismiss(model.id))),
      ),
    variants(model, held),
  ];
}

function badges(model, workers) {
  const state = workers[0]?.state ?? (model.state === "absent" ? null : model.state);
  const place = model.pulled ? ["On disk", "plain"] : model.usable ? ["Not here", "faint"] : ["Not for this device", "faint"];
  const first = state ? [STATES[state] ?? state, state === "ready" ? "good" : state === "failed" ? "bad" : "busy"] : place;
  const tone = { production: "good", verified: "good", incompatible: "bad" }[model.status] ?? "faint";
  return [
    h("span", { class: `badge ${first[1]}` }, first[0]),
    workers.some((worker) => worker.pinned) && h("span", { class: "badge plain" }, "Pinned"),
    h("span", { class: `badge ${tone}` }, `${model.status} · ${model.status_source}`),
  ];
}

function pairs(model, workers) {
  const measured = Object.values(model.variants).map((v) => v.measured).find(Boolean);
  const rows = [
    ["Memory", memory(model, workers, measured)],
    ["Speed", measured ? `${number(measured.decode_tokens_per_s, "tokens/s", 1)}, measured` : "not measured here"],
    ["Parameters", text(model.parameters)],
    ["Context", number(model.context_length, "tokens")],
    ["Licence", text(model.license)],
  ];
  return rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)));
}

function memory(model, workers, measured) {
  const worker = workers.find((w) => w.memory_observed_bytes != null);
  if (worker) return `${memoryOf(worker.memory_observed_bytes)} in use`;
  if (workers.length) return `${memoryOf(workers[0].memory_predicted_bytes)} predicted`;
  if (measured?.memory_bytes != null) return `${memoryOf(measured.memory_bytes)} measured`;
  return `${number(model.memory_requirement, "MB")} declared`;
}

const button = (label, name, onclick, kind = "") =>
  h("button", { type: "button", class: kind, "data-act": name, onclick }, label);

function actions(model, workers) {
  const loaded = workers.some((worker) => worker.state !== "failed");
  const usable = Object.values(model.variants).filter((variant) => variant.usable);
  const unbuilt = usable.some((variant) => variant.pulled && !variant.built);
  const ready = usable.some((variant) => variant.pulled && variant.built);
  return [
    loaded && button("Unload", "unload", () => unload(model.id)),
    !loaded && ready && button("Load", "load", () => load(model.id), "primary"),
    usable.length > 0 && !usable.some((variant) => variant.pulled) && button("Pull", "pull", () => pull(model.id), "primary"),
    unbuilt && button("Build", "build", () => build(model.id)),
    model.pulled && !loaded && button("Delete", "delete", () => confirm(model), "quiet"),
  ];
}

function progress(model, { label, fraction, cancel }) {
  return h(
    "div",
    { class: "progress" },
    h("progress", { max: 1, value: fraction, "aria-label": `${model.name}: ${label}` }),
    h("span", {}, label),
    cancel && button("Cancel", "cancel", cancel, "quiet"),
  );
}

// Progress comes ten times a second: only its text and its bar change.
function advance(node, model, { label, fraction }) {
  const bar = node.querySelector("progress");
  if (fraction === null) bar.removeAttribute("value");
  else bar.value = fraction;
  bar.setAttribute("aria-label", `${model.name}: ${label}`);
  say(node.querySelector(".progress span"), label);
}

function variants(model, held) {
  const names = Object.keys(model.variants);
  const evidence = h("div", {});
  const details = h(
    "details",
    { open: held.open },
    h("summary", { "data-act": "variants" }, `${count(names.length, "variant")} and evidence`),
    h(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": `Variants of ${model.name}` },
      h(
        "table",
        {},
        h("thead", {}, h("tr", {}, ["Variant", "Here", "Status", "Speed", "First token", "Memory", ""].map((n) => h("th", { scope: "col" }, n)))),
        h("tbody", {}, names.map((name) => variantRow(model, name, model.variants[name]))),
      ),
    ),
    model.notes && h("p", { class: "hint" }, model.notes),
    evidence,
  );
  details.addEventListener("toggle", () => {
    held.open = details.open;
    if (details.open) records(model.id, evidence);
  });
  return details;
}

function variantRow(model, name, variant) {
  const measured = variant.measured ?? {};
  const busy = of(model.id) !== null;
  const verb = variant.usable && !busy && (!variant.pulled ? ["Pull", pull] : variant.built ? null : ["Build", build]);
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, name, h("span", { class: "small" }, `${variant.backend} ${variant.quantization ?? ""}`)),
    h("td", {}, place(variant)),
    h("td", {}, `${variant.status} · ${variant.status_source}`, variant.lapsed && h("span", { class: "small" }, `Lapsed: ${variant.lapsed.join("; ")}`)),
    h("td", {}, variant.measured ? number(measured.decode_tokens_per_s, "/s", 1) : "–"),
    h("td", {}, variant.measured ? duration(measured.ttft_s) : "–"),
    h("td", {}, variant.measured ? memoryOf(measured.memory_bytes) : "–"),
    h("td", {}, verb && button(verb[0], `${verb[0]} ${name}`, () => verb[1](model.id, name), "quiet")),
  );
}

function place(variant) {
  if (variant.quarantined) return `put aside: ${variant.quarantined}`;
  if (!variant.usable) return "engine not here";
  if (!variant.pulled) return "not pulled";
  const here = variant.built ? "on disk" : "not built";
  return variant.bytes ? `${here}, ${size(variant.bytes)}` : here;
}

// What the harness measured, each record with whether it counts now.
async function records(model, box) {
  try {
    const { evidence } = await get(`/jetllm/v1/evidence?model=${encodeURIComponent(model)}`);
    const line = (record) =>
      h(
        "li",
        {},
        `${text(record.measured_at)} · ${record.variant} · ${text(record.status)} · `,
        `${number(record.decode_tokens_per_s, "tokens/s", 1)} · ${memoryOf(record.memory_bytes)}`,
        h("span", { class: "small" }, record.counts ? "Counts" : `Does not count: ${record.lapsed.join("; ")}`),
        record.issue && h("span", { class: "small" }, record.issue),
      );
    const none = h("p", { class: "hint" }, "Nothing was measured here yet: ", h("code", {}, `jetllm check ${model}`));
    fill(box, evidence.length ? [h("h3", {}, "Evidence"), h("ul", { class: "records" }, evidence.map(line))] : none);
  } catch (error) {
    fill(box, h("p", { class: "error" }, error.message));
  }
}

function confirm(model) {
  const dialog = byId("confirm-dialog");
  say(byId("confirm-title"), `Delete ${model.name}?`);
  say(byId("confirm-text"), "The weights of all its variants leave this device. To have them again they must be pulled, over the network.");
  byId("confirm-no").onclick = () => dialog.close();
  byId("confirm-form").onsubmit = (event) => {
    event.preventDefault();
    dialog.close();
    remove(model.id);
  };
  dialog.showModal();
  byId("confirm-no").focus();
}
