/** Numbers for people: three digits and a unit. */

const digits = (value: number): string =>
  value >= 100 ? value.toFixed(0) : value >= 9.95 ? value.toFixed(1) : value.toFixed(2);

export function duration(ms: number | null | undefined): string {
  if (ms === null || ms === undefined) return "–";
  if (ms === 0) return "0";
  if (ms < 0.001) return `${Math.round(ms * 1e6)} ns`;
  if (ms < 1) return `${digits(ms * 1e3)} µs`;
  if (ms < 1e3) return `${digits(ms)} ms`;
  if (ms < 6e4) return `${digits(ms / 1e3)} s`;
  return `${digits(ms / 6e4)} min`;
}

export function rate(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  if (value < 0.01) return "<0.01";
  if (value >= 9995) return `${digits(value / 1e3)}k`;
  return digits(value);
}

export function share(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  if (value <= 0) return "0 %";
  if (value < 0.0005) return "<0.1 %";
  return value < 0.0995 ? `${(value * 100).toFixed(1)} %` : `${(value * 100).toFixed(0)} %`;
}

export function bytes(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  if (value < 1024) return `${value} B`;
  if (value < 1 << 20) return `${digits(value / 1024)} KB`;
  if (value < 1 << 30) return `${digits(value / (1 << 20))} MB`;
  return `${digits(value / (1 << 30))} GB`;
}

export function count(value: number): string {
  return value.toLocaleString("en-US");
}

export function ago(seconds: number): string {
  if (seconds < 0) seconds = 0;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

const two = (n: number): string => String(n).padStart(2, "0");

export function clock(unixMs: number, withMs = false): string {
  const d = new Date(unixMs);
  const text = `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
  return withMs ? `${text}.${String(d.getMilliseconds()).padStart(3, "0")}` : text;
}

export function day(unixMs: number): string {
  const d = new Date(unixMs);
  return `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())}`;
}

/* Control characters, marks of direction, invisible characters and lone surrogates. */
const HIDDEN =
  // eslint-disable-next-line no-control-regex
  /[\u0000-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202f\u205f-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff]|[\ud800-\udfff]/gu;

/** Text that came from traffic, with everything that could mislead the eye written out; long text is cut. */
export function safe(text: unknown, limit = 4000): string {
  let shown = typeof text === "string" ? text : String(text);
  if (shown.length > limit) shown = `${shown.slice(0, limit)}… (${shown.length} characters)`;
  return shown.replace(HIDDEN, (c) =>
    c === "\ufffd" ? c : `\\u${(c.codePointAt(0) ?? 0).toString(16).padStart(4, "0")}`,
  );
}
