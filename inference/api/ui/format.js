// Numbers as people read them. What is not known is "unknown", never 0.

export const UNKNOWN = "unknown";

const known = (value) => typeof value === "number" && Number.isFinite(value);

/** Return *value* with *digits* after the point and its unit. */
export function number(value, unit = "", digits = 0) {
  if (!known(value)) return UNKNOWN;
  const text = value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return unit ? `${text}\u00a0${unit}` : text; // a number and its unit stay on one line
}

/** Return bytes in GiB or MiB, as memory is counted. */
export function memoryOf(bytes) {
  if (!known(bytes)) return UNKNOWN;
  return bytes >= 2 ** 30 ? number(bytes / 2 ** 30, "GiB", 1) : number(bytes / 2 ** 20, "MiB");
}

/** Return bytes in GB, MB or kB, as files and downloads are counted. */
export function size(bytes) {
  if (!known(bytes)) return UNKNOWN;
  if (bytes >= 1e9) return number(bytes / 1e9, "GB", 1);
  return bytes >= 1e6 ? number(bytes / 1e6, "MB") : number(bytes / 1e3, "kB");
}

/** Return seconds as "40 s", "3 min" or "2.5 h". */
export function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  if (seconds < 1) return number(seconds * 1000, "ms");
  if (seconds < 90) return number(seconds, "s", seconds < 10 ? 1 : 0);
  return seconds < 5400 ? number(seconds / 60, "min") : number(seconds / 3600, "h", 1);
}

/** Return hertz as MHz. */
export const clock = (hertz) => number(known(hertz) ? hertz / 1e6 : null, "MHz");

/** Return a share of 1 as a percentage. */
export const share = (fraction) => number(known(fraction) ? fraction * 100 : null, "%");

/** Return text, or that it is unknown. */
export const text = (value) => (value === null || value === undefined || value === "" ? UNKNOWN : String(value));

/** Return the singular or the plural. */
export const count = (n, one, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;

/** Return a name of the registry as words. */
export const words = (name) => String(name).replaceAll("_", " ");
