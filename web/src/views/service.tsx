/** One service: charts, heat map, operations, neighbours, processes. */

import type { JSX } from "preact";
import { useMemo, useState } from "preact/hooks";
import type { Charts, Neighbour, Operation, ProcessUse, Service } from "../api";
import { Chart, type Line } from "../chart";
import { ago, bytes, count, duration, rate, share } from "../format";
import { Heatmap } from "../heatmap";
import { useData, useLive, useTitle } from "../hooks";
import { Bar, Empty, Fact, HealthMark, Language, Panel, T, Table, Trouble, type Column } from "../parts";
import { go, to } from "../route";

const STATUS_COLORS: Record<string, string> = {
  "1xx": "c-gray", "2xx": "c-ok", "3xx": "c-blue", "4xx": "c-amber", "5xx": "c-bad", ok: "c-ok", error: "c-bad",
};

export function ServiceView({ id }: { id: string }): JSX.Element {
  const { range, tick, overview } = useLive();
  const { data, error } = useData<Service>(
    `/api/v1/services/${encodeURIComponent(id)}?range=${range}`,
    Math.floor(tick / 2),
  );
  const [side, setSide] = useState<"server" | "client" | null>(null);
  useTitle(data?.name ?? "Service");
  if (!data) return error ? <Trouble error={error} /> : <Empty>Asking for the numbers…</Empty>;
  const row = overview?.services.find((s) => s.id === data.id);
  const shown = side && data.sides[side] ? side : data.main;
  const charts = data.sides[shown];
  const operations = data.operations.filter((o) => (shown === "server") === ["server", "consumer"].includes(o.kind));
  return (
    <>
      <div class="headline">
        <h1>
          {row && <HealthMark health={row.health} />} <T>{data.name}</T>
          <Language name={data.language} />
        </h1>
        <p class="sub">
          {row?.why && <span class="why">{row.why} · </span>}
          {data.processes.running.length} running, {data.processes.ended} ended · known for {ago(data.now_s - data.since_s)}
        </p>
        <div class="switch" role="group" aria-label="Which requests">
          {(["server", "client"] as const).map(
            (one) =>
              data.sides[one] && (
                <button key={one} type="button" aria-pressed={shown === one} onClick={() => setSide(one)}>
                  {one === "server" ? "requests it serves" : "requests it makes"}
                </button>
              ),
          )}
        </div>
      </div>
      <Trouble error={error} />
      {charts ? (
        <Red service={data} charts={charts} side={shown} />
      ) : (
        <Empty>No requests in this time. Choose a longer one above.</Empty>
      )}
      {operations.length > 0 && <Operations service={data} rows={operations} side={shown} />}
      <div class="pair">
        <Neighbours title="Who calls it" rows={data.callers} />
        <Neighbours title="What it calls" rows={data.callees} />
      </div>
      <Processes service={data} />
    </>
  );
}

function Red({ service, charts, side }: { service: Service; charts: Charts; side: string }): JSX.Element {
  const { total } = charts;
  const rates = useMemo<Line[]>(
    () =>
      Object.entries(charts.rate_by_status).map(([name, values]) => ({ name, values, color: STATUS_COLORS[name] ?? "c-gray" })),
    [charts],
  );
  const latency = useMemo<Line[]>(
    () => [
      { name: "p99", values: charts.p99_ms, color: "c-violet" },
      { name: "p95", values: charts.p95_ms, color: "c-blue" },
      { name: "p50", values: charts.p50_ms, color: "c-ok" },
    ],
    [charts],
  );
  const errors = useMemo<Line[]>(() => [{ name: "failed", values: charts.errors, color: "c-bad" }], [charts]);
  const common = { start: service.start_s, step: service.step_s };
  const failed = to("traces", { service: service.id, status: "error", kind: side });
  return (
    <>
      <dl class="totals row">
        <div><dt>requests/s</dt><dd>{rate(total.rate)}</dd></div>
        <div><dt>failed</dt><dd class={total.error_share > 0 ? "bad" : ""}>{share(total.error_share)}</dd></div>
        <div><dt>p50</dt><dd>{duration(total.p50_ms)}</dd></div>
        <div><dt>p95</dt><dd>{duration(total.p95_ms)}</dd></div>
        <div><dt>p99</dt><dd>{duration(total.p99_ms)}</dd></div>
        <div><dt>requests</dt><dd>{count(total.count)}</dd></div>
      </dl>
      <div class="charts">
        <Panel title="Rate" aside="requests/s by status">
          <Chart label="Requests per second by status" {...common} lines={rates} format={rate} stack />
        </Panel>
        <Panel title="Errors" aside={<a href={failed}>failed requests</a>}>
          <Chart label="Failed requests per second" {...common} lines={errors} format={rate} stack />
        </Panel>
        <Panel title="Duration" aside={<a href={to("traces", { service: service.id, kind: side, min: total.p95_ms ? `${Math.round(total.p95_ms * 1000)}us` : null })}>slower than p95</a>}>
          <Chart label="Latency" {...common} lines={latency} format={duration} log />
        </Panel>
        <Panel title="Latency heat map">
          <Heatmap
            {...common}
            low={charts.heat.low_ms}
            ratio={charts.heat.ratio}
            cells={charts.heat.cells}
            onPick={(from, until, low, high) =>
              go(to("traces", {
                service: service.id, kind: side, min: `${Math.floor(low * 1000)}us`, max: `${Math.ceil(high * 1000)}us`,
                from: Math.floor(from * 1000), to: Math.ceil(until * 1000),
              }))
            }
          />
        </Panel>
      </div>
    </>
  );
}

function Operations({ service, rows, side }: { service: Service; rows: Operation[]; side: string }): JSX.Element {
  const columns: Column<Operation>[] = [
    {
      key: "name", title: side === "server" ? "Route or operation" : "Call", value: (o) => o.name, class: "grow",
      cell: (o) => <a href={to("traces", { service: service.id, operation: o.name, kind: o.kind })}><T>{o.name}</T></a>,
    },
    { key: "rate", title: "req/s", end: true, value: (o) => o.rate, cell: (o) => rate(o.rate) },
    { key: "errors", title: "failed", end: true, value: (o) => o.error_share, cell: (o) => <span class={o.error_share > 0 ? "bad" : "dim"}>{share(o.error_share)}</span> },
    { key: "p50", title: "p50", end: true, class: "roomy", value: (o) => o.p50_ms ?? 0, cell: (o) => duration(o.p50_ms) },
    { key: "p95", title: "p95", end: true, value: (o) => o.p95_ms ?? 0, cell: (o) => duration(o.p95_ms) },
    { key: "p99", title: "p99", end: true, class: "roomy", value: (o) => o.p99_ms ?? 0, cell: (o) => duration(o.p99_ms) },
    { key: "share", title: "share of time", end: true, class: "roomy", value: (o) => o.time_share, cell: (o) => <span class="with-bar"><Bar value={o.time_share} />{share(o.time_share)}</span> },
  ];
  return (
    <Panel title={side === "server" ? "Routes and operations" : "Calls"} aside={`${rows.length}`}>
      <Table rows={rows} columns={columns} sort="share" label="Operations" id={(o) => `${o.kind} ${o.name}`} most={15} />
    </Panel>
  );
}

function Neighbours({ title, rows }: { title: string; rows: Neighbour[] }): JSX.Element {
  const columns: Column<Neighbour>[] = [
    {
      key: "name", title: "Peer", value: (n) => n.name, class: "grow",
      cell: (n) => n.service !== null ? <a href={to(`service/${n.service}`)}><T>{n.name}</T></a> : <><T>{n.name}</T> <span class="badge">{n.type}</span></>,
    },
    { key: "rate", title: "req/s", end: true, value: (n) => n.rate, cell: (n) => rate(n.rate) },
    { key: "errors", title: "failed", end: true, value: (n) => n.error_share, cell: (n) => <span class={n.error_share > 0 ? "bad" : "dim"}>{share(n.error_share)}</span> },
    { key: "p95", title: "p95", end: true, value: (n) => n.p95_ms ?? 0, cell: (n) => duration(n.p95_ms) },
  ];
  return (
    <Panel title={title}>
      {rows.length ? <Table rows={rows} columns={columns} sort="rate" label={title} id={(n) => `${n.type} ${n.name}`} most={10} /> : <Empty>Nobody, as far as requests show.</Empty>}
    </Panel>
  );
}

function Processes({ service }: { service: Service }): JSX.Element {
  const { running, ended } = service.processes;
  const columns: Column<ProcessUse>[] = [
    { key: "pid", title: "pid", end: true, value: (p) => p.pid, cell: (p) => p.pid },
    { key: "exe", title: "Program", value: (p) => p.executable, class: "grow", cell: (p) => <span title={p.command}><T limit={120}>{p.executable}</T></span> },
    { key: "cpu", title: "CPU", end: true, value: (p) => p.cpu_share ?? -1, cell: (p) => share(p.cpu_share) },
    { key: "rss", title: "memory", end: true, value: (p) => p.rss_bytes ?? 0, cell: (p) => bytes(p.rss_bytes) },
    { key: "threads", title: "threads", end: true, class: "roomy", value: (p) => p.threads ?? 0, cell: (p) => p.threads ?? "–" },
    { key: "since", title: "running", end: true, class: "roomy", value: (p) => -p.since_s, cell: (p) => ago(service.now_s - p.since_s) },
  ];
  return (
    <Panel title="Processes" aside={<dl class="inline"><Fact name="running">{running.length}</Fact><Fact name="ended or restarted">{ended}</Fact></dl>}>
      {running.length ? <Table rows={running} columns={columns} label="Processes" id={(p) => p.pid} most={10} /> : <Empty>None is running now.</Empty>}
    </Panel>
  );
}
