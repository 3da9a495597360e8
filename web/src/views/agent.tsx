/** onlooker itself: what it costs, what it lost, what it watches, how it is set. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";
import type { Agent, ConfigValue, ProcessRow } from "../api";
import { ago, bytes, count, duration, share } from "../format";
import { useData, useLive, useTitle } from "../hooks";
import { Bar, Empty, Fact, HealthMark, Panel, T, Table, Trouble, type Column } from "../parts";

export function AgentView(): JSX.Element {
  const { tick } = useLive();
  const { data, error } = useData<Agent>("/api/v1/agent", tick);
  useTitle("Agent");
  if (!data) return error ? <Trouble error={error} /> : <Empty>Asking onlooker about itself…</Empty>;
  const lost = data.losses.filter((l) => l.count > 0);
  return (
    <>
      <div class="headline">
        <h1>onlooker {data.version}</h1>
        <p class="sub">
          <T>{data.host}</T> · Linux <T>{data.kernel}</T> · pid {data.pid} · hooks: {data.hook || "none"} · up {ago(data.uptime_s)}
        </p>
        <dl class="totals">
          <div><dt>CPU of a core</dt><dd>{share(data.cpu_share)}</dd></div>
          <div><dt>memory</dt><dd>{bytes(data.rss_bytes)}</dd></div>
          <div><dt>processes</dt><dd>{data.processes}</dd></div>
          <div><dt>requests</dt><dd>{count(data.requests)}</dd></div>
          <div><dt>lost</dt><dd class={data.lost ? "bad" : "good"}>{count(data.lost)}</dd></div>
        </dl>
      </div>
      <Trouble error={error} />
      {data.notes.length > 0 && (
        <Panel title="Worth knowing">
          <ul class="unseen">{data.notes.map((note) => <li key={note}><span><T>{note}</T></span></li>)}</ul>
        </Panel>
      )}
      <div class="pair">
        <Panel title="Lost, by reason">
          {lost.length ? (
            <ul class="unseen">
              {lost.map((l) => (
                <li key={l.reason}><strong>{count(l.count)} × <T>{l.reason.replaceAll("_", " ")}</T></strong><span><T>{l.why}</T></span></li>
              ))}
            </ul>
          ) : (
            <p class="fine"><HealthMark health="ok" /> nothing</p>
          )}
          <details>
            <summary>{data.losses.length - lost.length} reasons that did not occur</summary>
            <ul class="unseen quiet">
              {data.losses.filter((l) => !l.count).map((l) => (
                <li key={l.reason}><strong><T>{l.reason.replaceAll("_", " ")}</T></strong><span><T>{l.why}</T></span></li>
              ))}
            </ul>
          </details>
        </Panel>
        <Panel title="Queues and tables">
          <ul class="gauges">
            {data.rings.map((r) => <Gauge key={r.record_bytes} name={`ring of ${r.record_bytes}-byte records`} value={r.fill} text={share(r.fill)} />)}
            <Gauge name="series" value={data.series.alive / data.series.limit} text={`${count(data.series.alive)} of ${count(data.series.limit)}`} />
            <Gauge name="interned strings" value={data.strings.used / data.strings.limit} text={`${count(data.strings.used)} of ${count(data.strings.limit)}`} />
            {data.store && <Gauge name="store" value={data.store.file_bytes / data.store.max_bytes} text={`${bytes(data.store.file_bytes)} of ${bytes(data.store.max_bytes)}`} />}
          </ul>
          <dl class="facts">
            <Fact name="drained every">{duration(data.drain.interval_s * 1000)}</Fact>
            <Fact name="CPU of capture">{data.drain.cpu_s} s</Fact>
            <Fact name="sampler"><T>{data.sampling.sampler}</T></Fact>
            <Fact name="looked into TLS">{data.tls.refused ? <T>{data.tls.refused}</T> : `${count(data.tls.probed)} processes`}</Fact>
            <Fact name="spans kept">{count(data.sampling.kept)} of {count(data.sampling.seen)}</Fact>
          </dl>
        </Panel>
      </div>
      <div class="pair">
        <Panel title="Store">
          {data.store ? (
            <>
              <dl class="facts">
                <Fact name="spans">{count(data.store.spans)}</Fact>
                <Fact name="oldest">{data.store.oldest_s ? `${ago(Date.now() / 1000 - data.store.oldest_s)} ago` : "–"}</Fact>
                <Fact name="written">{count(data.store.spans_kept)}</Fact>
                <Fact name="thinned out">{count(data.store.spans_thinned)}</Fact>
                <Fact name="not looked at">{count(data.store.undetailed)}</Fact>
                <Fact name="dropped"><span class={data.store.dropped ? "bad" : ""}>{count(data.store.dropped)}</span></Fact>
                <Fact name="CPU">{data.store.cpu_s} s</Fact>
              </dl>
              <p class="hint"><code><T>{data.store.path}</T></code></p>
              {data.store.last_error && <p class="trouble"><T>{data.store.last_error}</T></p>}
            </>
          ) : (
            <Empty>There is none.</Empty>
          )}
        </Panel>
        <Panel title="Exporters">
          {data.exporters.length ? data.exporters.map((e) => (
            <div key={e.name} class="exporter">
              <h3><HealthMark health={e.last_error_unix_ns > e.last_success_unix_ns ? "failing" : "ok"} /> {e.name}</h3>
              <dl class="facts">
                <Fact name="sent">{count(e.sent)}</Fact>
                <Fact name="waiting">{count(e.queued)} ({bytes(e.queued_bytes)})</Fact>
                <Fact name="dropped">{count(Object.values(e.dropped).reduce((a, b) => a + b, 0))}</Fact>
                <Fact name="failed attempts">{count(e.failures)}</Fact>
              </dl>
              {e.last_error && <p class="hint"><T>{e.last_error}</T></p>}
            </div>
          )) : <Empty>Nothing is sent anywhere: no OTLP endpoint is set.</Empty>}
        </Panel>
      </div>
      <Programs rows={data.programs} measuring={data.measuring} />
      <Processes />
      <Config />
    </>
  );
}

function Gauge({ name, value, text }: { name: string; value: number; text: string }): JSX.Element {
  return (
    <li>
      <span>{name}</span>
      <Bar value={value} kind={value > 0.9 ? "bad" : ""} />
      <b>{text}</b>
    </li>
  );
}

function Programs({ rows, measuring }: { rows: Agent["programs"]; measuring: Agent["measuring"] }): JSX.Element {
  const columns: Column<Agent["programs"][number]>[] = [
    { key: "name", title: "Probe", value: (p) => p.name, class: "grow", cell: (p) => <code><T>{p.name}</T></code> },
    { key: "runs", title: "runs", end: true, value: (p) => p.runs, cell: (p) => (p.runs ? count(p.runs) : "–") },
    { key: "ns", title: "each", end: true, value: (p) => p.ns_per_run ?? 0, cell: (p) => (p.ns_per_run ? duration(p.ns_per_run / 1e6) : "–") },
    { key: "share", title: "of a core", end: true, value: (p) => p.time_ns, cell: (p) => (p.core_share ? share(p.core_share) : "–") },
    { key: "missed", title: "missed", end: true, value: (p) => p.missed, cell: (p) => count(p.missed) },
    { key: "verified", title: "instructions verified", end: true, class: "roomy", value: (p) => p.verified, cell: (p) => count(p.verified) },
  ];
  return (
    <Panel title="Probes attached" aside={measuring.on ? "the kernel measures them while somebody looks here" : `not measured: ${measuring.refused}`}>
      {rows.length ? <Table rows={rows} columns={columns} label="Probes" id={(p) => p.name} /> : <Empty>None.</Empty>}
    </Panel>
  );
}

function Processes(): JSX.Element {
  const { tick } = useLive();
  const { data, error } = useData<{ processes: ProcessRow[] }>("/api/v1/processes", Math.floor(tick / 5));
  const [filter, set] = useState("");
  const [all, setAll] = useState(false);
  const rows = (data?.processes ?? []).filter((p) => (all || p.watched) && `${p.pid} ${p.executable} ${p.service} ${p.reason}`.toLowerCase().includes(filter.toLowerCase()));
  const columns: Column<ProcessRow>[] = [
    { key: "pid", title: "pid", end: true, value: (p) => p.pid, cell: (p) => p.pid },
    { key: "state", title: "Watched", value: (p) => (p.watched ? "yes" : "no"), cell: (p) => (p.watched ? <b class="good">yes</b> : <span class="dim">no</span>) },
    { key: "service", title: "Service", value: (p) => p.service, cell: (p) => <T>{p.service}</T> },
    { key: "exe", title: "Program", value: (p) => p.executable, class: "grow", cell: (p) => <T>{p.executable}</T> },
    { key: "tls", title: "TLS", value: (p) => p.tls.join(" "), cell: (p) => p.tls.map((one) => <div key={one}><T>{one}</T></div>) },
    { key: "reason", title: "Why", value: (p) => p.reason, class: "grow", cell: (p) => <T>{p.reason}</T> },
  ];
  return (
    <Panel
      title="Processes"
      aside={
        <>
          <label class="check"><input type="checkbox" checked={all} onChange={(e) => setAll(e.currentTarget.checked)} /> also those not watched</label>
          <input type="search" placeholder="filter" aria-label="Filter processes" value={filter} onInput={(e) => set(e.currentTarget.value)} />
        </>
      }
    >
      <Trouble error={error} />
      {rows.length ? <Table rows={rows} columns={columns} label="Processes" id={(p) => p.pid} most={20} rowClass={(p) => (p.watched ? "" : "dim")} /> : <Empty>None.</Empty>}
    </Panel>
  );
}

function Config(): JSX.Element {
  const { data, error } = useData<{ values: ConfigValue[] }>("/api/v1/config");
  const [filter, set] = useState("");
  const [all, setAll] = useState(false);
  const rows = (data?.values ?? []).filter((v) => (all || !/^(default|derived)/.test(v.source)) && v.key.includes(filter.toLowerCase()));
  const columns: Column<ConfigValue>[] = [
    { key: "key", title: "Key", value: (v) => v.key, cell: (v) => <code>{v.key}</code> },
    { key: "value", title: "Value", value: (v) => JSON.stringify(v.value), class: "grow", cell: (v) => <code><T>{typeof v.value === "string" ? v.value : JSON.stringify(v.value)}</T></code> },
    { key: "source", title: "From", value: (v) => v.source, cell: (v) => <span class={v.source === "default" ? "dim" : ""}><T>{v.source}</T></span> },
  ];
  return (
    <Panel
      title="Configuration in effect"
      aside={
        <>
          <label class="check"><input type="checkbox" checked={all} onChange={(e) => setAll(e.currentTarget.checked)} /> also defaults</label>
          <input type="search" placeholder="filter keys" aria-label="Filter keys" value={filter} onInput={(e) => set(e.currentTarget.value)} />
        </>
      }
    >
      <Trouble error={error} />
      {rows.length ? <Table rows={rows} columns={columns} label="Configuration" id={(v) => v.key} most={40} /> : <Empty>Everything stands at its default.</Empty>}
    </Panel>
  );
}
