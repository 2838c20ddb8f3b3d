// The page: its three views, the line that says how things are, and what starts them.

import { forgetKey, hasKey } from "./api.js";
import * as chat from "./chat.js";
import * as device from "./device.js";
import { byId, say } from "./dom.js";
import { count, memoryOf } from "./format.js";
import * as live from "./live.js";
import * as models from "./models.js";

const VIEWS = { chat: { title: "Chat" }, models: { title: "Models", enter: models.enter }, device: { title: "Device", enter: device.enter } };

function show() {
  const name = location.hash.slice(1) in VIEWS ? location.hash.slice(1) : "chat";
  for (const each of Object.keys(VIEWS)) byId(`view-${each}`).hidden = each !== name;
  document.querySelectorAll("[data-view]").forEach((link) => {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  });
  document.body.dataset.shown = name;
  document.title = `${VIEWS[name].title} · JetLLM`;
  VIEWS[name].enter?.();
}

function pulse({ detail: status }) {
  const loaded = status.workers.filter((worker) => worker.state === "ready").length;
  const free = status.memory?.available_bytes;
  say(byId("pulse"), `${count(loaded, "model")} loaded · ${free == null ? "memory unknown" : `${memoryOf(free)} free`}`);
  banner(status.state === "draining" ? "The daemon is stopping and takes no new work." : "");
  byId("forget-key").hidden = !hasKey();
}

function banner(words) {
  say(byId("banner"), words);
  byId("banner").hidden = !words;
}

byId("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the hash names the view
  byId("main").focus();
});
byId("forget-key").addEventListener("click", forgetKey);
window.addEventListener("hashchange", show);
live.live.addEventListener("status", pulse);
live.live.addEventListener("unreachable", ({ detail }) => banner([detail.message, detail.hint].filter(Boolean).join(": ")));

chat.start();
models.start();
device.start();
show();
live.start();
