/** Where we are: the fragment of the address, `#/service/3?range=900`. */

import { useEffect, useState } from "preact/hooks";

export interface Route {
  parts: string[];
  query: URLSearchParams;
}

export function parse(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  return { parts: path.split("/").filter(Boolean).map(decode), query: new URLSearchParams(query) };
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

export function useRoute(): Route {
  const [route, set] = useState(() => parse(location.hash));
  useEffect(() => {
    const changed = (): void => set(parse(location.hash));
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return route;
}

type Values = Record<string, string | number | null | undefined>;

/** A link within the page; the range goes along. */
export function to(path: string, values: Values = {}): string {
  const query = new URLSearchParams();
  const range = parse(location.hash).query.get("range");
  if (range) query.set("range", range);
  for (const [key, value] of Object.entries(values)) {
    if (value === null || value === undefined || value === "") query.delete(key);
    else query.set(key, String(value));
  }
  const text = query.toString();
  return `#/${path}${text ? `?${text}` : ""}`;
}

export function go(href: string): void {
  location.hash = href.slice(1);
}

/** Change parts of the query without a new entry in the history. */
export function change(values: Values): void {
  const route = parse(location.hash);
  for (const [key, value] of Object.entries(values)) {
    if (value === null || value === undefined || value === "") route.query.delete(key);
    else route.query.set(key, String(value));
  }
  const text = route.query.toString();
  history.replaceState(null, "", `#/${route.parts.map(encodeURIComponent).join("/")}${text ? `?${text}` : ""}`);
  dispatchEvent(new HashChangeEvent("hashchange"));
}
