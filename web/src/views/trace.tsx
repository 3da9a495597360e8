/** A trace: waterfall, and every attribute of the chosen span. */

import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import { get, type Span, type Trace } from "../api";
import { bytes, clock, day, duration } from "../format";
import { useData, useTitle } from "../hooks";
import { Copy, Empty, Fact, HealthMark, hue, Panel, T, Trouble } from "../parts";
import { to, useRoute } from "../route";

const PARENTS: Record<string, string> = {
  none: "it has no parent: the trace begins here",
  header: "from the traceparent field of the request",
  thread: "the request that the same thread was serving",
  peer: "the request at the other end of the same connection",
  ambiguous: "none was set, because several requests could be the parent",
};

export function TraceView({ id }: { id: string }): JSX.Element {
  const path = `/api/v1/traces/${encodeURIComponent(id)}`;
  const { data, error } = useData<Trace>(path);
  const { query } = useRoute();
  const [chosen, choose] = useState<string>(query.get("span") ?? "");
  useTitle(data ? `Trace of ${data.spans[0]?.name ?? ""}` : "Trace");
  useEffect(() => {
    if (data && !data.spans.some((s) => s.span_id === chosen)) choose(data.spans[0]?.span_id ?? "");
  }, [data]);
  if (!data) return error ? <Trouble error={error} /> : <Empty>Fetching the trace…</Empty>;
  const span = data.spans.find((s) => s.span_id === chosen) ?? data.spans[0];
  const root = data.spans[0];
  const download = async (): Promise<void> => {
    const body = await get<unknown>(`${path}/otlp`);
    const url = URL.createObjectURL(new Blob([JSON.stringify(body, null, 2)], { type: "application/json" }));
    const link = document.createElement("a");
    link.href = url;
    link.download = `trace-${data.trace_id}.otlp.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  };
  return (
    <>
      <div class="headline">
        <h1>
          {root && <><span class={`chip ${hue(root.service_name)}`}><T>{root.service_name}</T></span> <T>{root.name}</T></>}
          {data.errors > 0 && <HealthMark health="failing" />}
        </h1>
        <p class="sub">
          {day(data.start_ms)} {clock(data.start_ms, true)} · {duration(data.duration_ms)} · {data.spans.length}{" "}
          {data.spans.length === 1 ? "span" : "spans"} in {data.services.length} {data.services.length === 1 ? "service" : "services"}
          {data.errors > 0 && <span class="bad"> · {data.errors} failed</span>} · <code>{data.trace_id}</code>
        </p>
        <p class="actions">
          <Copy title="copy as JSON" text={() => JSON.stringify(data, null, 2)} />
          <Copy title="copy as OTLP" text={async () => JSON.stringify(await get<unknown>(`${path}/otlp`), null, 2)} />
          <button type="button" class="button" onClick={() => void download()}>download OTLP</button>
          {span && <a class="button" href={similar(span)}>find similar</a>}
        </p>
      </div>
      <Panel title="Waterfall" aside={<Legend />}>
        <Waterfall trace={data} chosen={span?.span_id ?? ""} choose={choose} />
      </Panel>
      {span && <Details span={span} choose={choose} />}
    </>
  );
}

function similar(span: Span): string {
  return to("traces", {
    service: span.service, operation: span.name, kind: span.kind, status: span.error ? "error" : "ok",
    min: `${Math.floor(span.duration_ms * 500)}us`, max: `${Math.ceil(span.duration_ms * 2000)}us`,
  });
}

function Legend(): JSX.Element {
  return (
    <span class="legend phases">
      <span><i class="queued" /> waits to be read</span>
      <span><i class="phase request" /> request moves</span>
      <span><i class="phase work" /> is worked on</span>
      <span><i class="phase response" /> answer moves</span>
    </span>
  );
}

function Waterfall({ trace, chosen, choose }: { trace: Trace; chosen: string; choose: (id: string) => void }): JSX.Element {
  const whole = Math.max(trace.duration_ms, 0.0001);
  const ticks = [0, 0.25, 0.5, 0.75, 1];
  const at = (ms: number): number => (ms / whole) * 100;
  const move = (index: number) => (event: KeyboardEvent): void => {
    const step = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
    const next = trace.spans[index + step];
    if (step && next) {
      event.preventDefault();
      choose(next.span_id);
      document.getElementById(`span-${next.span_id}`)?.focus();
    }
  };
  return (
    <div class="waterfall">
      <div class="scale" aria-hidden="true">
        <span />
        <div>
          {ticks.map((t) => (
            <i key={t} style={{ left: `${t * 100}%` }}>{duration(t * whole)}</i>
          ))}
        </div>
      </div>
      {trace.spans.map((span, i) => (
        <button
          type="button"
          key={span.span_id + i}
          id={`span-${span.span_id}`}
          class={`bar-row ${span.span_id === chosen ? "chosen" : ""}${span.error ? " failed" : ""}`}
          aria-pressed={span.span_id === chosen}
          onClick={() => choose(span.span_id)}
          onKeyDown={move(i)}
        >
          <span class="label" style={{ paddingInlineStart: `${Math.min(span.depth, 12) * 14 + 4}px` }}>
            {span.depth > 0 && <span class="twig" aria-hidden="true">└</span>}
            <span class={`dot ${hue(span.service_name)}`} aria-hidden="true" />
            <b><T limit={40}>{span.service_name}</T></b>
            <span class="dim">{span.kind === "client" ? "→ " : ""}<T limit={90}>{span.name}</T></span>
          </span>
          <span class="lane">
            {ticks.slice(1, -1).map((t) => <i key={t} class="tick" style={{ left: `${t * 100}%` }} />)}
            {span.queue_ms !== null && span.queue_ms > 0 && (
              <i class={`queued ${hue(span.service_name)}`} style={{ left: `${at(span.offset_ms - span.queue_ms)}%`, width: `${at(span.queue_ms)}%` }} />
            )}
            <Phases span={span} at={at} />
            <i class="took" style={{ left: `${at(span.offset_ms + span.duration_ms)}%` }}>
              {duration(span.duration_ms)}
            </i>
          </span>
        </button>
      ))}
    </div>
  );
}

function Phases({ span, at }: { span: Span; at: (ms: number) => number }): JSX.Element {
  const { request_ms: sent, response_start_ms: first, duration_ms: all } = span;
  const edges: [string, number, number][] = [];
  const a = Math.min(sent ?? 0, all);
  const b = first === null ? all : Math.min(Math.max(first, a), all);
  if (a > 0) edges.push(["request", 0, a]);
  edges.push(["work", a, b]);
  if (b < all) edges.push(["response", b, all]);
  return (
    <span class={`phases ${span.error ? "bad" : hue(span.service_name)}`} style={{ left: `${at(span.offset_ms)}%`, width: `max(3px, ${at(all)}%)` }}>
      {edges.map(([name, from, until]) => (
        <i key={name} class={`phase ${name}`} style={{ flexGrow: Math.max(until - from, 0.0001) }} />
      ))}
    </span>
  );
}

function Details({ span, choose }: { span: Span; choose: (id: string) => void }): JSX.Element {
  const asks = span.kind === "client" || span.kind === "producer";
  const where = (end: { address: string; port: number }): string =>
    end.port ? `${end.address.includes(":") ? `[${end.address}]` : end.address}:${end.port}` : "UNIX socket";
  return (
    <Panel
      class="span-details"
      title={<><span class={`chip ${hue(span.service_name)}`}><T>{span.service_name}</T></span> <T>{span.name}</T></>}
      aside={span.other_side ? <button type="button" class="link" onClick={() => choose(span.other_side ?? "")}>the other side of this connection</button> : undefined}
    >
      <dl class="facts wide">
        <Fact name="duration">{duration(span.duration_ms)}</Fact>
        {span.queue_ms !== null && <Fact name="waited to be read">{duration(span.queue_ms)}</Fact>}
        <Fact name={asks ? "request went out" : "request came in"}>{duration(span.request_ms)}</Fact>
        <Fact name={asks ? "waited for the answer" : "worked on"}>{duration(span.processing_ms)}</Fact>
        <Fact name={asks ? "answer came in" : "answer went out"}>{span.response_start_ms === null ? "–" : duration(span.duration_ms - span.response_start_ms)}</Fact>
        <Fact name="status"><span class={span.error ? "bad" : ""}>{span.code || (span.error ? "error" : "ok")}</span></Fact>
        <Fact name="side">{span.kind}</Fact>
        <Fact name="protocol">{span.protocol}</Fact>
        <Fact name="request body">{bytes(span.request_bytes)}</Fact>
        <Fact name="response body">{bytes(span.response_bytes)}</Fact>
        <Fact name="process">{span.pid}{span.tid && span.tid !== span.pid ? `, thread ${span.tid}` : ""}</Fact>
        <Fact name="here"><code>{where(span.local)}</code></Fact>
        <Fact name="peer"><code>{where(span.remote)}</code></Fact>
        <Fact name="kept as">{span.kept_as}</Fact>
      </dl>
      <p class="hint">
        Parent: {span.missing_parent ? "a span that is not stored here" : (PARENTS[span.parent_source] ?? span.parent_source)}
        {span.stream ? " · a stream: its duration is its life" : ""}
      </p>
      <div class="pair">
        <Attributes title="Attributes" values={span.attributes} />
        <Attributes title="Resource" values={span.resource} />
      </div>
      <Attributes
        title="Ids"
        values={{ trace: span.trace_id, span: span.span_id, parent: span.parent_span_id || "none", connection: span.connection }}
      />
    </Panel>
  );
}

function Attributes({ title, values }: { title: string; values: Record<string, unknown> }): JSX.Element {
  const rows = Object.entries(values);
  return (
    <div>
      <h3>{title}</h3>
      <table class="attributes">
        <tbody>
          {rows.map(([key, value]) => (
            <tr key={key}>
              <th scope="row"><T>{key}</T></th>
              <td><T limit={8000}>{typeof value === "object" ? JSON.stringify(value) : value}</T></td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
