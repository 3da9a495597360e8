/** All services, what is wrong first; and what is not seen. */

import type { JSX } from "preact";
import { useState } from "preact/hooks";
import type { ServiceRow } from "../api";
import { ago, count, duration, rate, share } from "../format";
import { useLive, useTitle } from "../hooks";
import { Empty, HealthMark, Language, Panel, Spark, T } from "../parts";
import { to } from "../route";

export function OverviewView(): JSX.Element {
  const { overview } = useLive();
  const [filter, setFilter] = useState("");
  useTitle("Overview");
  if (!overview) return <Empty>Waiting for the first numbers…</Empty>;
  const needle = filter.toLowerCase();
  const rows = overview.services.filter((s) => `${s.name} ${s.language}`.toLowerCase().includes(needle));
  const bad = overview.services.filter((s) => s.health === "failing" || s.health === "degraded" || s.health === "slower");
  const serving = overview.services.flatMap((s) => (s.server ? [s.server] : []));
  const total = serving.reduce((sum, s) => sum + s.rate, 0);
  const failed = serving.reduce((sum, s) => sum + s.errors, 0);
  const seen = serving.reduce((sum, s) => sum + s.count, 0);
  return (
    <>
      <div class="headline">
        <h1>
          {bad.length ? (
            <>
              <HealthMark health={bad[0]?.health ?? "ok"} /> {bad.length} of {overview.services.length} services{" "}
              {bad.length === 1 ? "needs" : "need"} a look
            </>
          ) : (
            <>
              <HealthMark health={overview.services.length ? "ok" : "idle"} />{" "}
              {overview.services.length ? "All services are fine" : "No service has been seen yet"}
            </>
          )}
        </h1>
        <dl class="totals">
          <div>
            <dt>requests/s</dt>
            <dd>{rate(total)}</dd>
          </div>
          <div>
            <dt>failed</dt>
            <dd class={failed ? "bad" : ""}>{share(seen ? failed / seen : 0)}</dd>
          </div>
          <div>
            <dt>services</dt>
            <dd>{overview.services.length}</dd>
          </div>
        </dl>
      </div>
      <Panel
        title="Services"
        aside={
          <input
            type="search"
            placeholder="filter"
            aria-label="Filter services"
            value={filter}
            onInput={(e) => setFilter(e.currentTarget.value)}
          />
        }
      >
        {rows.length ? (
          <ul class="services">
            <li class="heads" aria-hidden="true">
              <span>service</span>
              <span>requests/s</span>
              <span>errors</span>
              <span>p50 · p95 · p99</span>
              <span>since</span>
            </li>
            {rows.map((row) => (
              <Service key={row.id} row={row} now={overview.now_s} />
            ))}
          </ul>
        ) : (
          <Empty>
            {filter ? "No service has such a name." : "No requests yet. Send one to a watched service and it shows here within two seconds."}
          </Empty>
        )}
      </Panel>
      <Panel title="Not seen">
        {overview.unseen.length ? (
          <ul class="unseen">
            {overview.unseen.map((one) => (
              <li key={`${one.what} ${one.why}`}>
                <strong>
                  {one.count ? `${count(one.count)} × ` : ""}
                  <T>{one.what.replaceAll("_", " ")}</T>
                </strong>
                <span>
                  <T>{one.why}</T>
                </span>
              </li>
            ))}
          </ul>
        ) : (
          <p class="fine">
            <HealthMark health="ok" />
            <span>
              Nothing was lost since onlooker started: every request of the watched processes is in these numbers.{" "}
              <a href={to("agent")}>Which processes are watched</a>
            </span>
          </p>
        )}
      </Panel>
    </>
  );
}

function Service({ row, now }: { row: ServiceRow; now: number }): JSX.Element {
  const side = row.server ?? row.client;
  return (
    <li class={`service ${row.health}`}>
      <div class="who">
        <a href={to(`service/${row.id}`)} class="name">
          <HealthMark health={row.health} /> <T>{row.name}</T>
        </a>
        <span class="sub">
          <Language name={row.language} />
          {!row.server && row.client && <span class="badge">only calls</span>}
          <span>
            {row.processes} {row.processes === 1 ? "process" : "processes"}
          </span>
        </span>
        {row.why && <span class="why">{row.why}</span>}
      </div>
      {side ? (
        <>
          <div class="metric">
            <Spark values={side.spark.rate} kind="rate" label={`requests per second, now ${rate(side.rate)}`} />
            <b>
              {rate(side.rate)}
              <small>/s</small>
            </b>
          </div>
          <div class="metric">
            <Spark values={side.spark.errors} kind="errors" label={`failed requests, ${share(side.error_share)}`} />
            <b class={side.error_share > 0 ? "bad" : "dim"}>{share(side.error_share)}</b>
          </div>
          <div class="metric wide">
            <Spark values={side.spark.p95_ms} kind="latency" label={`95th percentile, ${duration(side.p95_ms)}`} />
            <b class="quantiles">
              <span title="half of the requests are faster">{duration(side.p50_ms)}</span>
              <span title="95 of 100 requests are faster">{duration(side.p95_ms)}</span>
              <span title="99 of 100 requests are faster">{duration(side.p99_ms)}</span>
            </b>
          </div>
        </>
      ) : (
        <div class="metric quiet">no requests in this time</div>
      )}
      <div class="since">{ago(now - row.since_s)}</div>
    </li>
  );
}
