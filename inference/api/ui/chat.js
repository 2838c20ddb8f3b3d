// The chat: turns, an answer as it comes, and what was chosen for it and why.

import { ApiError, events, post, send } from "./api.js";
import { all, canChat, catalog } from "./catalog.js";
import { byId, fill, h, memory, say } from "./dom.js";
import { count, duration, memoryOf, number, share } from "./format.js";
import { last, live, refresh } from "./live.js";
import { copy, render } from "./markdown.js";

const LOOK_MS = 500;
const IDEAS = ["Write a haiku about a lighthouse", "What is a KV cache?", "A Python function that reverses a list"];

let turns = memory.get("chat", []).map(ended);
let running = null; // {abort, turn} of the answer under way

/** Show what was said before and listen to the form. */
export function start() {
  restoreChoices();
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  byId("message").addEventListener("keydown", keys);
  byId("message").addEventListener("input", grow);
  byId("stop").addEventListener("click", stop);
  byId("new-chat").addEventListener("click", clear);
  byId("composer").addEventListener("change", keepChoices);
  catalog.addEventListener("change", offerModels);
  window.addEventListener("beforeunload", stop); // or its end would look like a broken connection
  window.addEventListener("pagehide", keep);
  show();
}

// An answer that was under way when the page was left ended there.
function ended(turn) {
  const open = turn.role === "assistant" && !turn.finish && !turn.error;
  return open ? { ...turn, stopped: true } : turn;
}

function keys(event) {
  if (event.key === "Escape") stop();
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask();
}

function ask(text = byId("message").value.trim()) {
  if (!text || running) return;
  turns.push({ role: "user", text });
  byId("message").value = "";
  grow();
  answer();
}

function stop() {
  running?.abort.abort();
}

function clear() {
  stop();
  running = null;
  busy(false);
  turns = [];
  keep();
  fill(byId("spoken"));
  show();
}

function retry() {
  if (running) return;
  turns.pop();
  answer();
}

async function answer() {
  const mine = (running = { abort: new AbortController(), turn: { role: "assistant", text: "" } });
  const { turn } = mine;
  const body = { ...choices(), messages: history(), stream: true, stream_options: { include_usage: true } };
  turn.asked = { model: body.model, speed: body.speed, messages: body.messages.slice(-1) };
  turns.push(turn);
  keep();
  show();
  byId("scroller").scrollTop = byId("scroller").scrollHeight;
  busy(true);
  fill(byId("spoken"));
  const node = byId("thread").lastElementChild;
  const waiting = wait(node);
  const voice = speaker();
  try {
    const response = await send("/v1/chat/completions", { method: "POST", body, signal: mine.abort.signal });
    turn.reason = response.headers.get("X-JetLLM-Selection");
    turn.dropped = Number(response.headers.get("X-JetLLM-Dropped-Turns") ?? 0);
    const paint = painter(node, turn);
    for await (const { data } of events(response)) {
      if (data.error) throw new ApiError(200, data);
      waiting.end();
      take(turn, data);
      voice.hear(turn.text);
      paint();
    }
    if (!turn.finish) throw new ApiError(200, { error: { message: "the answer broke off" } });
  } catch (error) {
    if (error.name === "AbortError") turn.stopped = true;
    else turn.error = plain(error);
  }
  waiting.end();
  if (running === mine) {
    running = null;
    voice.end(turn);
    keep();
    busy(false);
    const follow = atEnd();
    node.replaceWith(shown(turn, turns.length - 1));
    if (follow) toEnd();
  }
}

function take(turn, data) {
  turn.model = data.model ?? turn.model;
  const choice = data.choices?.[0];
  turn.text += choice?.delta?.content ?? "";
  turn.finish = choice?.finish_reason ?? turn.finish;
  turn.usage = data.usage ?? turn.usage;
  turn.timings = data.timings ?? turn.timings;
}

const plain = (error) => ({
  message: error.message,
  hint: error.hint ?? null,
  code: error.code ?? null,
  requestId: error.requestId ?? null,
});

// What the model is told: questions that were never answered are left out.
function history() {
  const said = [];
  turns.forEach((turn, i) => {
    const answered = turn.role === "assistant" ? turn.text : turns[i + 1]?.text || i === turns.length - 1;
    if (answered) said.push({ role: turn.role, content: turn.text });
  });
  const system = byId("system").value.trim();
  return system ? [{ role: "system", content: system }, ...said] : said;
}

function choices() {
  const wanted = { model: byId("model").value, speed: speed() };
  for (const [name, id] of [["temperature", "temperature"], ["max_tokens", "max-tokens"], ["top_p", "top-p"]]) {
    const value = byId(id).valueAsNumber;
    if (!Number.isNaN(value)) wanted[name] = value;
  }
  if (byId("slide").checked) wanted.context_overflow = "slide";
  return wanted;
}

const speed = () => document.querySelector("input[name=speed]:checked").value;

const FIELDS = ["system", "temperature", "max-tokens", "top-p"];

function keepChoices() {
  const fields = Object.fromEntries(FIELDS.map((id) => [id, byId(id).value]));
  memory.set("choices", { model: byId("model").value, speed: speed(), slide: byId("slide").checked, fields });
}

function restoreChoices() {
  const kept = memory.get("choices");
  if (!kept) return;
  for (const id of FIELDS) byId(id).value = kept.fields[id] ?? "";
  byId("slide").checked = kept.slide;
  const radio = document.querySelector(`input[name=speed][value="${kept.speed}"]`);
  if (radio) radio.checked = true;
}

function offerModels() {
  const wanted = memory.get("choices")?.model ?? "auto";
  const able = all().filter(canChat);
  const option = (model) => h("option", { value: model.id, selected: model.id === wanted }, model.name || model.id);
  const group = (label, models) => models.length > 0 && h("optgroup", { label }, models.map(option));
  fill(
    byId("model"),
    h("option", { value: "auto" }, "Automatic"),
    group("Loaded", able.filter((model) => model.state === "ready")),
    group("On disk", able.filter((model) => model.state !== "ready")),
  );
  if (!turns.length) show();
}

function keep() {
  memory.set("chat", turns);
}

function busy(is) {
  byId("send").hidden = is;
  byId("stop").hidden = !is;
  byId("message").focus();
}

function grow() {
  const field = byId("message");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight, 220)}px`;
}

function show() {
  fill(byId("thread"), turns.length ? turns.map(shown) : welcome());
  toEnd();
}

function welcome() {
  const none = all().length > 0 && !all().some(canChat);
  if (none) {
    return h(
      "div",
      { class: "welcome" },
      h("h2", {}, "No model is on this device yet"),
      h("p", {}, "Bring one here first; a small one takes about a minute."),
      h("p", {}, h("a", { class: "button primary", href: "#models" }, "Choose a model")),
    );
  }
  const idea = (text) => h("button", { type: "button", class: "idea", onclick: () => ask(text) }, text);
  return h(
    "div",
    { class: "welcome" },
    h("h2", {}, "What would you like to know?"),
    h("p", {}, "For each question the device picks a model that fits its memory. Below the answer stands which, and why."),
    h("div", { class: "ideas" }, IDEAS.map(idea)),
  );
}

function shown(turn, i) {
  if (turn.role === "user") {
    return h("article", { class: "turn user", "aria-label": "You" }, h("div", { class: "said" }, turn.text));
  }
  const said = h("div", { class: "said prose" });
  render(said, turn.text);
  const over = running?.turn !== turn;
  return h(
    "article",
    { class: "turn assistant", "aria-label": `Answer${turn.model ? ` of ${turn.model}` : ""}`, "aria-busy": over ? null : "true" },
    said,
    over && turn.stopped && h("p", { class: "note" }, "Stopped."),
    over && turn.finish === "length" && h("p", { class: "note" }, "Cut off: the maximum of tokens was reached."),
    over && turn.dropped > 0 && h("p", { class: "note" }, `Left out for want of room: the first ${count(turn.dropped, "turn")}.`),
    over && turn.error && failure(turn.error, i === turns.length - 1),
    over && turn.reason && origin(turn),
  );
}

function failure(error, isLast) {
  return h(
    "div",
    { class: "failure", role: "alert" },
    h("p", {}, h("strong", {}, error.message)),
    error.hint && h("p", {}, error.hint),
    error.requestId && h("p", { class: "small" }, `Request ${error.requestId}`),
    h(
      "p",
      { class: "actions" },
      isLast && h("button", { type: "button", onclick: retry }, "Try again"),
      String(error.code).startsWith("model_not") && h("a", { class: "button", href: "#models" }, "Open models"),
    ),
  );
}

// Which model answered, why it was chosen, and how fast it was.
function origin(turn) {
  const { timings = {}, usage = {} } = turn;
  const figures = [
    usage?.completion_tokens != null && `${number(usage.completion_tokens)} tokens`,
    timings?.predicted_per_second != null && `${number(timings.predicted_per_second, "tokens/s", 1)}`,
    timings?.prompt_ms != null && `prompt read in ${duration(timings.prompt_ms / 1000)}`,
  ].filter(Boolean);
  const copying = h("button", { type: "button", class: "quiet" }, "Copy");
  copying.addEventListener("click", () => copy(turn.text, copying));
  const table = h("div", {});
  const details = h("details", { class: "why" }, h("summary", {}, "All candidates"), table);
  details.addEventListener("toggle", () => details.open && compare(table, turn.asked));
  return h(
    "footer",
    { class: "origin" },
    h("p", {}, h("strong", {}, turn.model ?? "unknown"), figures.length > 0 && ` · ${figures.join(" · ")}`),
    h("p", { class: "reason" }, `Chosen: ${turn.reason.replace(`${turn.model}/`, "")}`),
    h("div", { class: "actions" }, turn.text && copying, turn.asked && details),
  );
}

async function compare(table, asked) {
  fill(table, h("p", { class: "hint" }, "Asking…"));
  try {
    const { candidates } = await post("/jetllm/v1/select", asked);
    fill(table, ranking(candidates));
  } catch (error) {
    fill(table, failure(plain(error), false));
  }
}

function ranking(candidates) {
  const row = (c) =>
    h(
      "tr",
      { class: c.verdict },
      h("th", { scope: "row" }, c.model, h("span", { class: "small" }, c.variant)),
      h("td", {}, memoryOf(c.memory_bytes)),
      h("td", {}, number(c.tokens_per_s, "", 1)),
      h("td", { class: "long" }, c.verdict === "chosen" ? "would be chosen now" : c.reason),
    );
  return h(
    "div",
    { class: "scroll tall", tabindex: 0, role: "region", "aria-label": "Candidates" },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, ["Model", "Memory", "Tokens/s", "Why"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, candidates.map(row)),
    ),
  );
}

// Until the first text: what the device is doing, looked up twice a second.
function wait(node) {
  const text = h("span", {}, "Choosing a model…");
  const bar = h("progress", { "aria-label": "Loading", hidden: true });
  const box = h("p", { class: "waiting", role: "status" }, h("span", { class: "dot" }), text, bar);
  node.append(box);
  const look = ({ detail }) => {
    const loading = detail.workers.find((worker) => worker.state === "starting");
    const known = typeof loading?.progress === "number";
    bar.hidden = !known;
    if (known) bar.value = loading.progress;
    const queued = detail.queue?.waiting > 0 && !loading;
    const what = loading ? `Loading ${loading.model}` : queued ? "Waiting for its turn" : "Reading the prompt";
    say(text, `${what}${known ? ` · ${share(loading.progress)}` : ""}…`);
  };
  live.addEventListener("status", look);
  const timer = setInterval(() => !document.hidden && refresh().catch(() => null), LOOK_MS);
  if (last.status) toEnd();
  return {
    end() {
      clearInterval(timer);
      live.removeEventListener("status", look);
      box.remove();
    },
  };
}

// Paints at most once a frame, and follows the end only if the reader was there.
function painter(node, turn) {
  const said = node.querySelector(".said");
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      const follow = atEnd();
      render(said, turn.text);
      if (follow) toEnd();
    });
  };
}

// Says whole sentences to screen readers: a word at a time would stutter.
function speaker() {
  const log = byId("spoken");
  let told = 0;
  const tell = (text) => text.trim() && log.append(h("p", {}, text.trim()));
  return {
    hear(text) {
      const news = text.slice(told);
      const ends = [...news.matchAll(/[.!?:]\s|\n/g)];
      if (!ends.length) return;
      const end = ends.at(-1).index + 1;
      if (end < 30) return;
      tell(news.slice(0, end));
      told += end;
    },
    end(turn) {
      tell(turn.text.slice(told));
      if (turn.stopped) tell("Stopped.");
    },
  };
}

const atEnd = () => {
  const { scrollHeight, scrollTop, clientHeight } = byId("scroller");
  return scrollHeight - scrollTop - clientHeight < 60;
};

const toEnd = () => {
  byId("scroller").scrollTop = byId("scroller").scrollHeight;
};
