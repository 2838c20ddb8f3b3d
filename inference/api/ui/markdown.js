// Markdown: a small part of it, built as nodes. Text of a model is never read as HTML.

import { h } from "./dom.js";

const FENCE = /^\s*(`{3,}|~{3,})\s*([\w+#.-]{0,30})/;
const HEADING = /^\s{0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^\s{0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^\s{0,3}>\s?/;
const ITEM = /^(\s*)(?:[-*+]|(\d{1,9})[.)])\s+/;
const CELLS = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;
const LINK = /\[([^[\]\n]{1,300})\]\((https?:\/\/[^\s()<>"]{1,2000})\)/y;
const ADDRESS = /https?:\/\/[^\s<>"'`()[\]]{1,2000}[^\s<>"'`()[\].,;:!?*_]/y;
const MAX_DEPTH = 6;
const MAX_TRIES = 12;

/** Show *text* in *element*; what has not changed since the last time keeps its nodes. */
export function render(element, text) {
  const blocks = split(text);
  blocks.forEach((block, i) => {
    const old = element.children[i];
    if (old?.raw === block.raw) return;
    const node = build(block);
    node.raw = block.raw;
    if (old) old.replaceWith(node);
    else element.append(node);
  });
  while (element.children.length > blocks.length) element.lastElementChild.remove();
}

function split(text) {
  const lines = text.replaceAll("\r\n", "\n").split("\n");
  const blocks = [];
  let at = 0;
  const take = (kind, end, more = {}) => {
    const part = lines.slice(at, end);
    blocks.push({ kind, lines: part, raw: `${kind}\n${part.join("\n")}`, ...more });
    at = end;
  };
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    if (!line.trim()) at += 1;
    else if (fence) take("code", fenceEnd(lines, at, fence[1]), { language: fence[2] });
    else if (HEADING.test(line)) take("heading", at + 1);
    else if (RULE.test(line)) take("rule", at + 1);
    else if (QUOTE.test(line)) take("quote", runEnd(lines, at, (l) => QUOTE.test(l)));
    else if (ITEM.test(line)) take("list", runEnd(lines, at, (l) => l.trim() && !FENCE.test(l) && !HEADING.test(l), true));
    else if (isTable(lines, at)) take("table", runEnd(lines, at, (l) => l.includes("|")));
    else take("text", runEnd(lines, at, (l, i) => i === at || (l.trim() && !opens(lines, i))));
  }
  return blocks;
}

const isTable = (lines, i) => lines[i].includes("|") && lines[i + 1]?.includes("-") && CELLS.test(lines[i + 1]);

const opens = (lines, i) =>
  [FENCE, HEADING, RULE, QUOTE, ITEM].some((start) => start.test(lines[i])) || isTable(lines, i);

function fenceEnd(lines, at, mark) {
  for (let i = at + 1; i < lines.length; i++) {
    if (lines[i].trim().startsWith(mark) && !lines[i].trim().replaceAll(mark[0], "")) return i + 1;
  }
  return lines.length;
}

// The end of a run of lines; a list goes on over one empty line when another item follows.
function runEnd(lines, at, belongs, overGaps = false) {
  let i = at + 1;
  while (i < lines.length) {
    const gap = overGaps && !lines[i].trim() && i + 1 < lines.length && ITEM.test(lines[i + 1]);
    if (!gap && !belongs(lines[i], i)) break;
    i += 1;
  }
  return i;
}

function build({ kind, lines, language }) {
  if (kind === "code") return code(lines, language);
  if (kind === "rule") return h("hr");
  if (kind === "list") return list(lines);
  if (kind === "table") return table(lines);
  if (kind === "quote") return quote(lines.map((line) => line.replace(QUOTE, "")).join("\n"));
  if (kind === "heading") {
    const [, marks, text] = HEADING.exec(lines[0]);
    return h(`h${Math.min(marks.length + 2, 6)}`, {}, inline(text));
  }
  return h("p", {}, inline(lines.join("\n")));
}

function quote(text) {
  return h("blockquote", {}, ...text.split(/\n\s*\n/).map((part) => h("p", {}, inline(part))));
}

function code(lines, language) {
  const mark = FENCE.exec(lines[0])[1];
  const last = lines[lines.length - 1].trim();
  const closed = lines.length > 1 && last.startsWith(mark) && !last.replaceAll(mark[0], "");
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  const button = h("button", { type: "button", class: "quiet", "aria-label": "Copy this code" }, "Copy");
  button.addEventListener("click", () => copy(text, button));
  return h(
    "div",
    { class: "code" },
    h("div", { class: "code-head" }, h("span", {}, language || "code"), button),
    h("pre", { tabindex: 0, role: "region", "aria-label": `Code ${language}` }, h("code", {}, text)),
  );
}

function list(lines) {
  const roots = [];
  const open = []; // lists from the outermost to the innermost, with their indentation
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (!found) {
      open.at(-1).items.at(-1).text += `\n${line.trim()}`;
      continue;
    }
    const indent = found[1].replaceAll("\t", "    ").length;
    while (open.length > 1 && indent < open.at(-1).indent) open.pop();
    let here = open.at(-1);
    if (!here || indent > here.indent + 1) {
      const inner = { indent, start: found[2], items: [] };
      (here ? here.items.at(-1).lists : roots).push(inner);
      if (open.length < MAX_DEPTH || !here) open.push(inner);
      here = inner;
    }
    here.items.push({ text: line.slice(found[0].length), lists: [] });
  }
  return tree(roots[0]);
}

function tree({ start, items }) {
  const rows = items.map((item) => h("li", {}, inline(item.text), ...item.lists.map(tree)));
  return start === undefined ? h("ul", {}, ...rows) : h("ol", { start: Number(start) }, ...rows);
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => inline(cell.trim()));
  const row = (line, tag) => h("tr", {}, ...cells(line).map((cell) => h(tag, {}, cell)));
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table" },
    h(
      "table",
      {},
      h("thead", {}, row(lines[0], "th")),
      h("tbody", {}, ...lines.slice(2).map((line) => row(line, "td"))),
    ),
  );
}

/** Return nodes for emphasis, code, links and text. */
function inline(text, depth = 0) {
  const nodes = [];
  const missing = new Set(); // marks that are known not to come again: no line is read twice for them
  let plain = "";
  let at = 0;
  const push = (node, end) => {
    if (plain) nodes.push(plain);
    plain = "";
    nodes.push(node);
    at = end;
  };
  while (at < text.length) {
    const c = text[at];
    const found = depth < MAX_DEPTH ? span(text, at, depth, missing) : null;
    if (found) push(found.node, found.end);
    else if (c === "\\" && /[\\`*_{}[\]()#+\-.!~|>]/.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      at += 2;
    } else {
      plain += c;
      at += 1;
    }
  }
  if (plain) nodes.push(plain);
  return nodes;
}

function span(text, at, depth, missing) {
  const c = text[at];
  if (c === "`") return codeSpan(text, at, missing);
  if (c === "*" || c === "_" || c === "~") return emphasis(text, at, depth, missing);
  if (c === "[") {
    const found = matched(LINK, text, at);
    return found && { node: link(found[2], found[1]), end: at + found[0].length };
  }
  if (c === "h" && !/\w/.test(text[at - 1] ?? " ")) {
    const found = matched(ADDRESS, text, at);
    return found && { node: link(found[0], found[0]), end: at + found[0].length };
  }
  return null;
}

function codeSpan(text, at, missing) {
  let width = 1;
  while (text[at + width] === "`") width += 1;
  const mark = "`".repeat(width);
  const end = missing.has(mark) ? -1 : text.indexOf(mark, at + width);
  if (end < 0) {
    missing.add(mark);
    return { node: mark, end: at + width };
  }
  return { node: h("code", {}, text.slice(at + width, end)), end: end + width };
}

function emphasis(text, at, depth, missing) {
  const c = text[at];
  const mark = text[at + 1] === c ? c + c : c;
  const word = (i) => /\w/.test(text[i] ?? " ");
  const blank = (i) => /\s/.test(text[i] ?? " ");
  const inWord = word(at - 1) && (c === "_" || mark === "*"); // snake_case, 2*3*4
  const bad = mark === "~" || missing.has(mark) || blank(at + mark.length) || inWord;
  if (bad) return null;
  let end = at + mark.length;
  for (let tries = 0; tries < MAX_TRIES; tries++) {
    end = text.indexOf(mark, end + 1);
    if (end < 0) {
      missing.add(mark);
      return null;
    }
    const single = mark.length > 1 || (text[end + 1] !== c && text[end - 1] !== c);
    if (!blank(end - 1) && single && !(c === "_" && word(end + mark.length))) {
      const tag = { "**": "strong", __: "strong", "~~": "s" }[mark] ?? "em";
      return { node: h(tag, {}, inline(text.slice(at + mark.length, end), depth + 1)), end: end + mark.length };
    }
  }
  return null;
}

function matched(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

const link = (address, text) => h("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, text);

/** Copy *text* and say so on the button; without a secure connection browsers only offer the old way. */
export async function copy(text, button) {
  const before = button.textContent;
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else copyOld(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  setTimeout(() => (button.textContent = before), 1500);
}

function copyOld(text) {
  const field = h("textarea", { class: "unseen", "aria-hidden": "true" });
  field.value = text;
  document.body.append(field);
  const focused = document.activeElement;
  field.select();
  document.execCommand("copy");
  field.remove();
  focused?.focus();
}
