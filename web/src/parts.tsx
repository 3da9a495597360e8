/** Small parts that every view uses. */

import type { ComponentChildren, JSX } from "preact";
import { useState } from "preact/hooks";
import type { Curve, Health } from "./api";
import { safe } from "./format";

/** Text from traffic: isolated, so that no mark of direction in it reaches its neighbours. */
export function T({ children, limit = 300 }: { children: unknown; limit?: number }): JSX.Element {
  return <bdi class="t">{safe(children, limit)}</bdi>;
}

const HUES = ["teal", "indigo", "amber", "rose", "sky", "violet", "lime", "orange", "cyan", "fuchsia"];

const given = new Map<string, string>();

/** A colour for a name: the same one as long as the page is open, another one for each of the first ten. */
export function hue(name: string): string {
  let found = given.get(name);
  if (!found) given.set(name, (found = `hue-${HUES[given.size % HUES.length]}`));
  return found;
}

const WORDS: Record<Health, string> = {
  failing: "failing",
  degraded: "some fail",
  slower: "slower",
  ok: "fine",
  idle: "idle",
};

export function HealthMark({ health, word = false }: { health: Health; word?: boolean }): JSX.Element {
  return (
    <span class={`health ${health}`} title={WORDS[health]}>
      <svg viewBox="0 0 12 12" width="12" height="12" aria-hidden="true">
        {health === "failing" ? (
          <path d="M6 .8 11.600 10.800H.4z" />
        ) : health === "degraded" || health === "slower" ? (
          <path d="M6 .5 11.500 6 6 11.500.5 6z" />
        ) : (
          <circle cx="6" cy="6" r="4.500" />
        )}
      </svg>
      <span class={word ? "" : "sr"}>{WORDS[health]}</span>
    </span>
  );
}

/** A small curve; gaps where there is no value. */
export function Spark({ values, kind, label }: { values: Curve; kind: string; label: string }): JSX.Element {
  const w = 120;
  const h = 28;
  const top = Math.max(...values.map((v) => v ?? 0));
  if (!top) {
    return (
      <svg class={`spark ${kind}`} viewBox={`0 0 ${w} ${h}`} preserveAspectRatio="none" role="img" aria-label={label}>
        <path class="none" d={`M0 ${h - 1.5}H${w}`} />
      </svg>
    );
  }
  const step = w / Math.max(values.length - 1, 1);
  let line = "";
  let area = "";
  let open = -1;
  const close = (at: number): void => {
    if (open >= 0) area += `L${(at * step).toFixed(1)} ${h}L${(open * step).toFixed(1)} ${h}Z`;
    open = -1;
  };
  values.forEach((v, i) => {
    if (v === null) {
      close(i - 1);
      return;
    }
    const point = `${(i * step).toFixed(1)} ${(h - 1.5 - (v / top) * (h - 4)).toFixed(1)}`;
    line += (open < 0 ? "M" : "L") + point;
    area += (open < 0 ? "M" : "L") + point;
    if (open < 0) {
      open = i;
      if (values[i + 1] === null || values[i + 1] === undefined) line += `h${Math.max(step / 2, 1).toFixed(1)}`;
    }
  });
  close(values.length - 1);
  return (
    <svg class={`spark ${kind}`} viewBox={`0 0 ${w} ${h}`} preserveAspectRatio="none" role="img" aria-label={label}>
      <path class="area" d={area} />
      <path class="line" d={line} />
    </svg>
  );
}

const LANGUAGES: Record<string, string> = {
  cpp: "C or C++", dotnet: ".NET", go: "Go", java: "Java", nodejs: "Node.js", php: "PHP", python: "Python", ruby: "Ruby", rust: "Rust",
};

/** The language of a service, where it is known to be one. */
export function Language({ name }: { name: string }): JSX.Element | null {
  return name && name !== "generic" ? <span class="badge">{LANGUAGES[name] ?? name}</span> : null;
}

export function Panel(props: {
  title: ComponentChildren;
  aside?: ComponentChildren;
  class?: string;
  children: ComponentChildren;
}): JSX.Element {
  return (
    <section class={`panel ${props.class ?? ""}`}>
      <header>
        <h2>{props.title}</h2>
        {props.aside && <div class="aside">{props.aside}</div>}
      </header>
      {props.children}
    </section>
  );
}

export function Empty({ children }: { children: ComponentChildren }): JSX.Element {
  return <p class="empty">{children}</p>;
}

export function Trouble({ error }: { error: Error | null }): JSX.Element | null {
  return error ? (
    <p class="trouble" role="alert">
      {safe(error.message, 300)}
    </p>
  ) : null;
}

export interface Column<R> {
  key: string;
  title: string;
  /** For sorting; text columns sort upwards first. */
  value: (row: R) => number | string;
  cell: (row: R) => ComponentChildren;
  end?: boolean;
  class?: string;
}

/** A table that sorts by any column. */
export function Table<R>(props: {
  rows: R[];
  columns: Column<R>[];
  sort?: string;
  label: string;
  id: (row: R) => string | number;
  most?: number;
  rowClass?: (row: R) => string;
}): JSX.Element {
  const [by, setBy] = useState<{ key: string; up: boolean } | null>(props.sort ? { key: props.sort, up: false } : null);
  const [all, setAll] = useState(false);
  const column = props.columns.find((c) => c.key === by?.key);
  let rows = props.rows;
  if (column && by) {
    const sign = by.up ? 1 : -1;
    rows = [...rows].sort((a, b) => {
      const [x, y] = [column.value(a), column.value(b)];
      return (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y))) * sign;
    });
  }
  const most = all ? rows.length : (props.most ?? rows.length);
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label={props.label}>
      <table>
        <thead>
          <tr>
            {props.columns.map((c) => (
              <th
                key={c.key}
                scope="col"
                class={`${c.end ? "end" : ""} ${c.class ?? ""}`}
                aria-sort={by?.key === c.key ? (by.up ? "ascending" : "descending") : "none"}
              >
                <button
                  type="button"
                  onClick={() => setBy((old) => ({ key: c.key, up: old?.key === c.key ? !old.up : !c.end }))}
                >
                  {c.title}
                  <span class="arrow" aria-hidden="true">
                    {by?.key === c.key ? (by.up ? "▲" : "▼") : ""}
                  </span>
                </button>
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.slice(0, most).map((row) => (
            <tr key={props.id(row)} class={props.rowClass?.(row)}>
              {props.columns.map((c) => (
                <td key={c.key} class={`${c.end ? "end" : ""} ${c.class ?? ""}`}>
                  {c.cell(row)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
      {rows.length > most && (
        <button type="button" class="more" onClick={() => setAll(true)}>
          show all {rows.length}
        </button>
      )}
    </div>
  );
}

export function Bar({ value, kind = "" }: { value: number; kind?: string }): JSX.Element {
  const width = Math.max(0, Math.min(1, value)) * 100;
  return (
    <svg class={`bar ${kind}`} viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">
      <rect class="track" width="100" height="6" />
      <rect class="value" width={width} height="6" />
    </svg>
  );
}

export function Fact({ name, children }: { name: string; children: ComponentChildren }): JSX.Element {
  return (
    <div class="fact">
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}

/** Text to the clipboard; says so. */
export function Copy({ title, text }: { title: string; text: () => string | Promise<string> }): JSX.Element {
  const [said, say] = useState("");
  const copy = async (): Promise<void> => {
    try {
      const value = await text();
      try {
        await navigator.clipboard.writeText(value);
      } catch {
        // without a secure context browsers keep the clipboard to themselves
        const area = document.createElement("textarea");
        area.value = value;
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
      }
      say("copied");
    } catch (err) {
      say(err instanceof Error ? err.message : "failed");
    }
    setTimeout(() => say(""), 1500);
  };
  return (
    <button type="button" class="button" onClick={() => void copy()}>
      <span aria-live="polite">{said || title}</span>
    </button>
  );
}
