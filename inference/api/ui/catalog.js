// The catalog: the registered models as last heard, asked anew when a worker changes.

import { get } from "./api.js";
import { live } from "./live.js";

/** Tells "change". */
export const catalog = new EventTarget();

let models = [];
let seen = null;
let asking = null;
let next = null;

/** The models, in the registry's order. */
export const all = () => models;

/** Ask for the models; whoever asks while an answer is on its way gets the one after it, which is newer. */
export function reload() {
  if (!asking) return (asking = ask().finally(() => (asking = null)));
  return (next ??= asking
    .catch(() => null)
    .then(() => {
      next = null;
      return reload();
    }));
}

async function ask() {
  models = (await get("/jetllm/v1/models")).models;
  catalog.dispatchEvent(new Event("change"));
}

/** Whether it can chat here now: its weights are here, it runs, and it makes text. */
export const canChat = (model) =>
  Object.values(model.variants).some((variant) => variant.usable && variant.pulled && variant.built) &&
  !model.use_cases.every((use) => use === "embedding");

live.addEventListener("status", ({ detail }) => {
  const now = JSON.stringify([detail.registry?.digest, ...detail.workers.map((w) => [w.model, w.variant, w.state])]);
  if (now === seen) return;
  seen = now;
  reload().catch(() => (seen = null));
});
