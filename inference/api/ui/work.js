// Work: loads, pulls and builds under way, those of other clients too, with how far each is.

import { ApiError, events, post, send } from "./api.js";
import { reload } from "./catalog.js";
import { duration, share, size, text } from "./format.js";
import { live } from "./live.js";

/** Tells "change" with the model's id. */
export const work = new EventTarget();

const mine = new Map(); // model -> {kind, progress, id}: what this page asked for
const others = new Map(); // model -> the same, of other clients and of this page before it was loaded anew
const problems = new Map(); // model -> what failed last: {message, hint}

/** What is done to a model now: {label, fraction, cancel}, or null. */
export function of(model) {
  const job = mine.get(model) ?? others.get(model);
  return job ? { ...told(job), cancel: job.id ? () => end(job) : null } : null;
}

export const problemOf = (model) => problems.get(model) ?? null;

export function dismiss(model) {
  problems.delete(model);
  change(model);
}

export const unload = (model) => run("unload", model, () => post("/jetllm/v1/models/unload", { model }));

export const remove = (model) => run("delete", model, () => send(path(model), { method: "DELETE" }));

export const load = (model) => follow("load", model, "/jetllm/v1/models/load", { model, stream: true });

export const pull = (model, variant) => follow("pull", model, `${path(model)}/pull`, variant ? { variant } : {});

export const build = (model, variant) => follow("build", model, `${path(model)}/build`, variant ? { variant } : {});

// A job is told in events. It goes on when this page leaves, and ends when it is deleted.
function follow(kind, model, to, body) {
  return run(kind, model, async (job) => {
    const response = await send(to, { method: "POST", body });
    job.id = response.headers.get("X-JetLLM-Job");
    change(model);
    for await (const { event, data } of events(response)) {
      if (event === "error" && data.error?.code === "cancelled") return;
      if (event === "error") throw new ApiError(200, data);
      if (event === "done") return;
      job.progress = data;
      change(model);
    }
    throw new ApiError(200, { error: { message: `the connection ended before the ${kind} did` } });
  });
}

async function run(kind, model, doing) {
  if (mine.has(model)) return;
  const job = { kind, progress: null, id: null };
  mine.set(model, job);
  problems.delete(model);
  change(model);
  try {
    await doing(job);
  } catch (error) {
    problems.set(model, error);
  }
  mine.delete(model);
  others.delete(model);
  await reload().catch(() => null);
  change(model);
}

async function end(job) {
  await send(`/jetllm/v1/jobs/${job.id}`, { method: "DELETE" }).catch(() => null); // it has just ended
}

// A name may hold "/": it stays one in the path.
const path = (model) => `/jetllm/v1/models/${model.split("/").map(encodeURIComponent).join("/")}`;

const change = (model) => work.dispatchEvent(new CustomEvent("change", { detail: model }));

const VERBS = { load: "Loading", unload: "Unloading", delete: "Deleting", pull: "Pulling", build: "Building" };
const PHASES = { wait: "Waiting for the same download", download: "Downloading", copy: "Copying", check: "Checking" };

function told({ kind, progress }) {
  if (!progress) return { label: `${VERBS[kind] ?? text(kind)}…`, fraction: null };
  if (progress.phase === "load") {
    const { fraction } = progress;
    return { label: fraction === null ? "Loading…" : `Loading · ${share(fraction)}`, fraction };
  }
  return "step" in progress ? built(progress) : downloaded(progress);
}

function downloaded({ phase, done_bytes, total_bytes, rate_bytes_per_s, eta_s }) {
  const label = [
    `${PHASES[phase] ?? phase} ${size(done_bytes)} of ${size(total_bytes)}`,
    rate_bytes_per_s !== null && `${size(rate_bytes_per_s)}/s`,
    eta_s !== null && `${duration(eta_s)} left`,
  ];
  return { label: label.filter(Boolean).join(" · "), fraction: total_bytes ? done_bytes / total_bytes : null };
}

function built({ quantization, step, number, steps, fraction, left_s }) {
  const label = [
    `Building ${quantization}: ${step.replaceAll("_", " ")}, step ${number} of ${steps}`,
    left_s !== null && `${duration(left_s)} left`,
  ];
  return { label: label.filter(Boolean).join(" · "), fraction: (number - 1 + (fraction ?? 0)) / steps };
}

live.addEventListener("jobs", ({ detail }) => {
  const before = new Map(others);
  others.clear();
  for (const job of detail.filter((each) => each.state === "running")) others.set(job.model, job);
  const ended = [...before].filter(([model]) => !others.has(model) && !mine.has(model));
  for (const [model, { id }] of ended) {
    const problem = detail.find((job) => job.id === id && job.state === "failed")?.error;
    if (problem) problems.set(model, problem);
  }
  if (ended.length) reload().catch(() => null);
  for (const model of new Set([...before.keys(), ...others.keys()])) change(model);
});
