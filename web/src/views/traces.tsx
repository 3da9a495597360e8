/** Search, and requests as they go by. */

import type { JSX } from "preact";
import { useEffect, useMemo, useState } from "preact/hooks";
import { get, listen, type Search, type ServiceName, type SpanRow, type TraceSummary } from "../api";
import { clock, count, day, duration, safe } from "../format";
import { useData, useTitle, useWidth } from "../hooks";
import { Bar, Empty, hue, Panel, T, Trouble } from "../parts";
import { change, go, to, useRoute } from "../route";

const FILTERS = ["service", "operation", "kind", "status", "min", "max", "attribute", "q", "from", "to"] as const;
/* With one of these the wanted request may lie deep inside a trace. */
const NARROWING = ["service", "operation", "kind", "attribute", "q"] as const;
const LIVE_ROWS = 200;

export function TracesView(): JSX.Element {
  const { query } = useRoute();
  useTitle("Traces");
  const live = query.get("live") === "1";
  const asked = useMemo(() => {
    const values = new URLSearchParams();
    for (const name of FILTERS) for (const value of query.getAll(name)) if (value) values.append(name, value);
    // without a service one line a trace is enough
    if (!NARROWING.some((name) => query.get(name))) values.set("entry", "1");
    if (values.get("kind") === "any") values.delete("kind");
    return values.toString();
  }, [query]);
  return (
    <>
      <h1 class="sr">Traces</h1>
      <Form key={asked} live={live} />
      {live ? <Tail asked={asked} /> : <Results asked={asked} />}
    </>
  );
}

/** Unix µs as an input of date and time has it. */
function local(us: string | null): string {
  const ms = Number(us) / 1000;
  return us && Number.isFinite(ms) ? `${day(ms)}T${clock(ms)}` : "";
}

function Form({ live }: { live: boolean }): JSX.Element {
  const { query } = useRoute();
  const { data } = useData<{ services: ServiceName[] }>("/api/v1/services");
  const services = data?.services ?? [];
  const chosen = services.find((s) => String(s.id) === query.get("service") || s.name === query.get("service"));
  const set = (name: string) => (e: { currentTarget: { value: string } }): void => change({ [name]: e.currentTarget.value });
  const moment = (name: string) => (e: { currentTarget: { value: string } }): void => {
    const at = e.currentTarget.value ? new Date(e.currentTarget.value).getTime() : NaN;
    change({ [name]: Number.isNaN(at) ? null : at * 1000 });
  };
  const narrowed = NARROWING.some((name) => name !== "kind" && query.get(name));
  const any = FILTERS.some((name) => query.get(name));
  return (
    <form class="filters panel" role="search" onSubmit={(e) => e.preventDefault()}>
      <label>
        Service
        <select value={chosen ? String(chosen.id) : ""} onChange={(e) => change({ service: e.currentTarget.value, operation: null })}>
          <option value="">all</option>
          {services.map((s) => (
            <option key={s.id} value={s.id}>{safe(s.name, 60)}</option>
          ))}
        </select>
      </label>
      <label>
        Operation
        <input list="operations" value={query.get("operation") ?? ""} placeholder="all" onChange={set("operation")} />
        <datalist id="operations">
          {(chosen ? chosen.operations : [...new Set(services.flatMap((s) => s.operations))]).filter((name) => safe(name) === name).slice(0, 300).map((name) => (
            <option key={name} value={name} />
          ))}
        </datalist>
      </label>
      <label class="small">
        Side
        <select value={query.get("kind") ?? ""} onChange={set("kind")}>
          <option value="">{narrowed ? "any" : "entry"}</option>
          {!narrowed && <option value="any">any</option>}
          <option value="server">served</option>
          <option value="client">made</option>
          <option value="producer">published</option>
          <option value="consumer">processed</option>
        </select>
      </label>
      <label class="small">
        Status
        <input list="statuses" value={query.get("status") ?? ""} placeholder="any" onChange={set("status")} />
        <datalist id="statuses">
          {["error", "ok", "5xx", "4xx", "404", "503"].map((s) => (
            <option key={s} value={s} />
          ))}
        </datalist>
      </label>
      <label class="small">
        At least
        <input value={query.get("min") ?? ""} placeholder="200ms" onChange={set("min")} />
      </label>
      <label class="small">
        At most
        <input value={query.get("max") ?? ""} placeholder="2s" onChange={set("max")} />
      </label>
      <label>
        Attribute
        <input value={query.get("attribute") ?? ""} placeholder="http.route=/cart*" onChange={set("attribute")} />
      </label>
      <label>
        Text
        <input type="search" value={query.get("q") ?? ""} placeholder="in any attribute" onChange={set("q")} />
      </label>
      <div class="times">
      <label class="when">
        From
        <input type="datetime-local" step="1" value={local(query.get("from"))} onChange={moment("from")} />
      </label>
      <label class="when">
        To
        <input type="datetime-local" step="1" value={local(query.get("to"))} onChange={moment("to")} />
      </label>
      </div>
      <div class="buttons">
        <button type="button" class={`button toggle${live ? " on" : ""}`} aria-pressed={live} onClick={() => change({ live: live ? null : 1 })}>
          {live ? "● live" : "watch live"}
        </button>
        {any && (
          <button type="button" class="button quiet" onClick={() => change(Object.fromEntries(FILTERS.map((f) => [f, null])))}>
            clear
          </button>
        )}
      </div>
    </form>
  );
}

function Results({ asked }: { asked: string }): JSX.Element {
  const [state, set] = useState<{ spans: SpanRow[]; traces: Record<string, TraceSummary>; cursor: number | null; complete: boolean } | null>(null);
  const [error, setError] = useState<Error | null>(null);
  const [round, again] = useState(0);
  const load = (before: number | null, signal?: AbortSignal): void => {
    const path = `/api/v1/traces?limit=60&${asked}${before ? `&before=${before}` : ""}`;
    get<Search>(path, signal).then(
      (found) => {
        setError(null);
        set((old) => before && old
          ? { ...found, spans: [...old.spans, ...found.spans], traces: { ...old.traces, ...found.traces } }
          : found);
      },
      (err: Error) => {
        if (!signal?.aborted) setError(err);
      },
    );
  };
  useEffect(() => {
    const stop = new AbortController();
    load(null, stop.signal);
    return () => stop.abort();
  }, [asked, round]);
  if (error) return <Trouble error={error} />;
  if (!state) return <Empty>Searching…</Empty>;
  if (!state.spans.length) {
    return (
      <Empty>
        {state.complete ? "No stored request is like that." : "None among the newest requests."}{" "}
        {state.cursor && <button type="button" class="link" onClick={() => load(state.cursor)}>search further back</button>}
      </Empty>
    );
  }
  return (
    <>
      <Panel title="Duration over time" aside={<button type="button" class="link" onClick={() => again(round + 1)}>refresh</button>}>
        <Scatter spans={state.spans} />
      </Panel>
      <Panel title={`${count(state.spans.length)} requests`} aside="newest first">
        <Rows spans={state.spans} traces={state.traces} />
        {state.cursor && (
          <button type="button" class="more" onClick={() => load(state.cursor)}>
            older requests
          </button>
        )}
      </Panel>
    </>
  );
}

function Tail({ asked }: { asked: string }): JSX.Element {
  const [spans, set] = useState<SpanRow[]>([]);
  const [paused, pause] = useState(false);
  const [up, setUp] = useState(true);
  useEffect(() => {
    if (paused) return;
    return listen(
      `/api/v1/stream?topics=spans&${asked}`,
      (event, data) => {
        if (event !== "spans") return;
        const fresh = (data as { spans: SpanRow[] }).spans;
        if (fresh.length) {
          set((old) => {
            const known = new Set(old.map((s) => s.id));
            return [...fresh.filter((s) => !known.has(s.id)), ...old].slice(0, LIVE_ROWS);
          });
        }
      },
      setUp,
    );
  }, [asked, paused]);
  return (
    <Panel
      title={<><span class={`live ${up && !paused ? "on" : "off"}`} /> Live</>}
      aside={
        <button type="button" class="button" onClick={() => pause(!paused)}>
          {paused ? "go on" : "pause"}
        </button>
      }
    >
      {spans.length ? (
        <div aria-live="off">
          <Scatter spans={spans} />
          <Rows spans={spans} traces={{}} />
        </div>
      ) : (
        <Empty>Waiting for requests…</Empty>
      )}
    </Panel>
  );
}

function Rows({ spans, traces }: { spans: SpanRow[]; traces: Record<string, TraceSummary> }): JSX.Element {
  const longest = Math.max(...spans.map((s) => s.duration_ms), 0.001);
  const today = day(Date.now());
  return (
    <ul class="spans">
      {spans.map((span) => {
        const trace = traces[span.trace_id];
        const shown = span.target && span.target !== span.name.split(" ").at(-1) ? span.target : "";
        return (
          <li key={span.id} class={span.error ? "failed" : ""}>
            <a href={to(`trace/${span.trace_id}`, { span: span.span_id })}>
              <time dateTime={new Date(span.start_ms).toISOString()}>
                {day(span.start_ms) === today ? "" : `${day(span.start_ms)} `}
                {clock(span.start_ms, true)}
              </time>
              <span class={`chip ${hue(span.service_name)}`}><T limit={40}>{span.service_name}</T></span>
              <span class="what">
                <b><T limit={120}>{span.name}</T></b> {shown && <span class="dim"><T limit={160}>{shown}</T></span>}
              </span>
              <span class={`code ${span.error ? "bad" : ""}`}>{span.code || (span.error ? "error" : "ok")}</span>
              <span class="took">
                <Bar value={Math.log1p(span.duration_ms * 10) / Math.log1p(longest * 10)} kind={span.error ? "bad" : ""} />
                <span>{duration(span.duration_ms)}</span>
              </span>
              <span class="more-of">
                {trace && trace.errors > 0 && !span.error && <span class="bad">{trace.errors} failed inside · </span>}
                {span.kind === "client" ? "made" : span.kind === "server" ? "served" : span.kind}
                {trace && trace.spans > 1 ? ` · ${trace.spans} spans` : ""}
                {trace && trace.services.length > 1 ? `, ${trace.services.length} services` : ""}
                {span.kept_as === "slow" || span.kept_as === "rare" ? ` · ${span.kept_as}` : ""}
              </span>
            </a>
          </li>
        );
      })}
    </ul>
  );
}

function Scatter({ spans }: { spans: SpanRow[] }): JSX.Element {
  const [box, width] = useWidth<HTMLDivElement>();
  const height = 150;
  const [left, bottom] = [62, 22];
  const starts = spans.map((s) => s.start_ms);
  const [t0, t1] = [Math.min(...starts), Math.max(...starts)];
  const times = spans.map((s) => Math.max(s.duration_ms, 0.001));
  const [d0, d1] = [Math.log10(Math.min(...times)) - 0.1, Math.log10(Math.max(...times)) + 0.1];
  const x = (t: number): number => left + ((t - t0) / Math.max(t1 - t0, 1)) * (width - left - 12);
  const y = (ms: number): number => height - bottom - ((Math.log10(Math.max(ms, 0.001)) - d0) / (d1 - d0)) * (height - bottom - 12);
  const ticks: number[] = [];
  for (let p = Math.ceil(d0); p <= d1; p++) ticks.push(10 ** p);
  if (!ticks.length) ticks.push(10 ** ((d0 + d1) / 2));
  return (
    <div ref={box} class="scatter">
      {width > 0 && (
        <svg width={width} height={height} role="img" aria-label={`Durations of ${spans.length} requests, ${duration(Math.min(...times))} to ${duration(Math.max(...times))}; the list below has the same`}>
          {ticks.map((tick) => (
            <g key={tick}>
              <path class="grid" d={`M${left} ${y(tick)}H${width - 12}`} />
              <text x={left - 8} y={y(tick) + 4} text-anchor="end">{duration(tick)}</text>
            </g>
          ))}
          <text x={left} y={height - 5}>{clock(t0)}</text>
          <text x={width - 12} y={height - 5} text-anchor="end">{clock(t1)}</text>
          {spans.map((s) => (
            <circle
              key={s.id}
              class={`dot ${s.error ? "bad" : hue(s.service_name)}`}
              cx={x(s.start_ms)}
              cy={y(s.duration_ms)}
              r={s.error ? 5 : 4}
              onClick={() => go(to(`trace/${s.trace_id}`, { span: s.span_id }))}
            />
          ))}
        </svg>
      )}
    </div>
  );
}
