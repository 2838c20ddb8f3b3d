// What is asked again and again: status and device, while somebody looks.

import { get } from "./api.js";

const PERIOD_MS = 2000;
const RETRY_MS = 5000;

/** Tells "status", "device", "jobs" and "unreachable" to whoever listens. */
export const live = new EventTarget();

/** The last answers; null before the first. */
export const last = { status: null, device: null, jobs: [] };

let timer = null;
let wanted = 0;

/** Ask now, and then every two seconds while the page is visible. */
export function start() {
  document.addEventListener("visibilitychange", () => (document.hidden ? pause() : poll()));
  if (!document.hidden) poll();
}

/** Ask for the status alone, at once. */
export async function refresh() {
  tell("status", await get("/jetllm/v1/status"));
}

function pause() {
  clearTimeout(timer);
  timer = null;
  wanted += 1;
}

async function poll() {
  pause();
  const round = wanted;
  let wait = PERIOD_MS;
  try {
    const [status, device, jobs] = await Promise.all([
      get("/jetllm/v1/status"),
      get("/jetllm/v1/device"),
      get("/jetllm/v1/jobs"),
    ]);
    if (round !== wanted) return;
    tell("status", status);
    tell("device", device);
    tell("jobs", jobs.jobs);
  } catch (error) {
    if (round !== wanted) return;
    live.dispatchEvent(new CustomEvent("unreachable", { detail: error }));
    wait = RETRY_MS;
  }
  timer = setTimeout(poll, wait);
}

function tell(kind, value) {
  last[kind] = value;
  live.dispatchEvent(new CustomEvent(kind, { detail: value }));
}
