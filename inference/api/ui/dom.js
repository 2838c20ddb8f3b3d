// Elements: made of a tag, properties and children. Text always goes in as text.

export const byId = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

/** Make an element; children are nodes or text, and null, undefined and false are left out. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...kept(children));
  return element;
}

/** Make an SVG element with attributes. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/** Replace what *element* holds. */
export function fill(element, ...children) {
  element.replaceChildren(...kept(children));
}

/** Set text only where it differs, so that readers of live regions hear changes and nothing else. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Read or keep a JSON value of this tab; a browser that refuses storage remembers nothing. */
export const memory = {
  get(name, otherwise = null) {
    try {
      return JSON.parse(sessionStorage.getItem(`jetllm.${name}`)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  set(name, value) {
    try {
      sessionStorage.setItem(`jetllm.${name}`, JSON.stringify(value));
    } catch {
      return; // full or refused
    }
  },
  drop(name) {
    try {
      sessionStorage.removeItem(`jetllm.${name}`);
    } catch {
      return;
    }
  },
};

const kept = (children) => children.flat(2).filter((c) => c !== null && c !== undefined && c !== false);
