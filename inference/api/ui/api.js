// The API: requests with the key, errors with their hints, and events of streams.

import { byId, memory, say } from "./dom.js";

/** What a request came to that was not answered as wished; status 0: nobody answered. */
export class ApiError extends Error {
  constructor(status, body) {
    const error = body?.error ?? {};
    super(error.message || (status ? `the daemon answered with status ${status}` : "the daemon cannot be reached"));
    this.status = status;
    this.code = error.code ?? null;
    this.hint = error.hint || (status ? null : "is it running? on the device: jetllm status");
    this.details = error.details ?? null;
    this.requestId = body?.request_id ?? null;
  }
}

let admitted = null;
let wrongKey = "";

/** Send a request; *body* makes it JSON. Returns the response, or throws `ApiError`. */
export async function send(path, { method = "GET", body, signal } = {}) {
  for (;;) {
    await (admitted ??= admission());
    const response = await attempt(path, { method, body, signal });
    if (response.status !== 401) return whole(response);
    admitted = null; // the key was taken back: ask for another
  }
}

export const get = async (path) => (await send(path)).json();

export const post = async (path, body, signal) => (await send(path, { method: "POST", body, signal })).json();

/** Yield the events of a stream as {event, data}, data parsed; "[DONE]" ends it. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(brokenOff);
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const found = parsed(block);
        if (found?.data === "[DONE]") return;
        if (found) yield { event: found.event, data: JSON.parse(found.data) };
      }
    }
  } finally {
    reader.cancel().catch(() => null); // whoever stops reading stops the work
  }
}

/** Forget the key and load the page anew. */
export function forgetKey() {
  memory.drop("key");
  location.reload();
}

export const hasKey = () => Boolean(memory.get("key"));

function brokenOff(error) {
  if (error.name === "AbortError") throw error;
  const hint = "is the daemon still running? on the device: jetllm status";
  throw new ApiError(0, { error: { message: "the connection broke off", hint } });
}

function parsed(block) {
  let event = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) event = line.slice(6).trim();
    if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  return data.length ? { event, data: data.join("\n") } : null;
}

async function attempt(path, { method = "GET", body, signal } = {}) {
  const headers = { Accept: "application/json, text/event-stream" };
  const key = memory.get("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  try {
    return await fetch(path, { method, headers, signal, body: body && JSON.stringify(body), cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, null);
  }
}

async function whole(response) {
  if (response.ok) return response;
  let body = null;
  try {
    body = await response.json();
  } catch {
    body = null; // something between us and the daemon answered
  }
  throw new ApiError(response.status, body);
}

// One question first, and the others only after its answer: wrong keys are counted by the daemon.
async function admission() {
  try {
    for (;;) {
      const response = await attempt("/jetllm/v1/status");
      if (response.status !== 401 && response.status !== 429) return;
      const error = await whole(response).catch((problem) => problem);
      await askKey(response.status === 401 ? wrongKey && "That key is not the right one." : error.message);
    }
  } catch (error) {
    admitted = null;
    throw error;
  }
}

function askKey(problem) {
  const dialog = byId("key-dialog");
  const field = byId("key");
  say(byId("key-error"), problem);
  field.value = "";
  if (!dialog.open) dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      const key = field.value.trim();
      if (!/^[\x21-\x7e]+$/.test(key)) {
        say(byId("key-error"), "A key has letters, digits and signs, and no spaces.");
        return;
      }
      wrongKey = key;
      memory.set("key", key);
      dialog.close();
      resolve();
    };
    dialog.oncancel = (event) => event.preventDefault(); // nothing works without it
  });
}
