/** The service graph from real traffic. */

import type { JSX } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { MapEdge, MapNode, ServiceMap } from "../api";
import { duration, rate, safe, share } from "../format";
import { useData, useLive, useTitle, useWidth } from "../hooks";
import { layout, shapeOf, type Placed } from "../layout";
import { Empty, Fact, HealthMark, T, Trouble } from "../parts";
import { go, to } from "../route";

const KINDS: Record<string, string> = {
  service: "service",
  database: "database",
  queue: "queue",
  dns: "name server",
  external: "outside peer",
  outside: "callers outside",
};

const short = (text: string, most: number): string => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

export function MapView(): JSX.Element {
  const { range, tick } = useLive();
  const { data, error } = useData<ServiceMap>(`/api/v1/map?range=${range}`, Math.floor(tick / 2));
  const [chosen, choose] = useState<string>("");
  useTitle("Map");
  if (!data) return error ? <Trouble error={error} /> : <Empty>Drawing the map…</Empty>;
  return (
    <>
      <h1 class="sr">Service map</h1>
      <Trouble error={error} />
      {data.nodes.length ? (
        <div class="map-view">
          <Graph map={data} chosen={chosen} choose={choose} />
          <Details map={data} chosen={chosen} choose={choose} />
        </div>
      ) : (
        <Empty>No requests in this time, so there is nothing to draw.</Empty>
      )}
    </>
  );
}

const edgeId = (edge: MapEdge): string => `${edge.from}\u0001${edge.to}`;

function tone(red: { error_share: number }): string {
  return red.error_share >= 0.05 ? "failing" : red.error_share >= 0.01 ? "degraded" : "ok";
}

function Graph(props: { map: ServiceMap; chosen: string; choose: (id: string) => void }): JSX.Element {
  const { map, chosen, choose } = props;
  const [box, width] = useWidth<HTMLDivElement>();
  const direction = width && width < 640 ? "TB" : "LR";
  const shape = shapeOf(map);
  const placed = useMemo(() => layout(map, direction), [shape, direction]);
  const [view, setView] = useState({ x: 0, y: 0, k: 1 });
  const moved = useRef(false);
  const drag = useRef<{ x: number; y: number } | null>(null);
  const wanted = placed.height * Math.min(width / placed.width, 1.35) + 60;
  const height = Math.max(360, Math.min(wanted, Math.max(innerHeight - 190, 360)));

  const fit = (): void => {
    if (!width) return;
    const k = Math.min(width / placed.width, height / placed.height, 1.35);
    setView({ k, x: (width - placed.width * k) / 2, y: (height - placed.height * k) / 2 });
    moved.current = false;
  };
  useEffect(() => {
    if (!moved.current) fit();
  }, [placed, width, height]);

  const zoom = (factor: number, cx = width / 2, cy = height / 2): void => {
    moved.current = true;
    setView((v) => {
      const k = Math.max(0.15, Math.min(4, v.k * factor));
      return { k, x: cx - ((cx - v.x) * k) / v.k, y: cy - ((cy - v.y) * k) / v.k };
    });
  };
  const svg = useRef<SVGSVGElement>(null);
  useEffect(() => {
    const element = svg.current;
    if (!element) return;
    const wheel = (event: WheelEvent): void => {
      event.preventDefault();
      const rect = element.getBoundingClientRect();
      zoom(Math.exp(-event.deltaY * 0.0015), event.clientX - rect.left, event.clientY - rect.top);
    };
    element.addEventListener("wheel", wheel, { passive: false });
    return () => element.removeEventListener("wheel", wheel);
  }, [width]);

  const now = new Map(map.edges.map((e) => [edgeId(e), e]));
  const nodes = new Map(map.nodes.map((n) => [n.id, n]));
  const near = new Set<string>();
  if (chosen) {
    near.add(chosen);
    for (const e of map.edges) {
      if (e.from === chosen || e.to === chosen || edgeId(e) === chosen) {
        near.add(e.from).add(e.to).add(edgeId(e));
      }
    }
  }
  const dim = (id: string): string => (chosen && !near.has(id) ? " dim" : "");
  const name = (id: string): string => safe(nodes.get(id)?.name ?? id, 80);
  const press = (id: string) => (event: KeyboardEvent): void => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(id === chosen ? "" : id);
    }
    if (event.key === "Escape") choose("");
  };
  return (
    <div class="graph" ref={box}>
      <div class="zoom">
        <button type="button" class="icon" aria-label="zoom in" onClick={() => zoom(1.3)}>+</button>
        <button type="button" class="icon" aria-label="zoom out" onClick={() => zoom(1 / 1.3)}>−</button>
        <button type="button" class="icon" aria-label="fit" onClick={fit}>⤢</button>
      </div>
      <svg
        ref={svg}
        width={width || 300}
        height={height}
        role="group"
        aria-label={`Service map: ${map.nodes.length} nodes, ${map.edges.length} edges`}
        onPointerDown={(e) => {
          if (e.target === svg.current) {
            drag.current = { x: e.clientX - view.x, y: e.clientY - view.y };
            svg.current?.setPointerCapture(e.pointerId);
          }
        }}
        onPointerMove={(e) => {
          const from = drag.current;
          if (!from) return;
          moved.current = true;
          setView((v) => ({ ...v, x: e.clientX - from.x, y: e.clientY - from.y }));
        }}
        onPointerUp={() => {
          drag.current = null;
        }}
        onClick={(e) => {
          if (e.target === svg.current && !moved.current) choose("");
        }}
      >
        <defs>
          {["ok", "degraded", "failing"].map((t) => (
            <marker key={t} id={`arrow-${t}`} class={`arrow-head ${t}`} viewBox="0 0 10 10" refX="8.500" refY="5" markerWidth="11" markerHeight="11" markerUnits="userSpaceOnUse" orient="auto">
              <path d="M0 0 10 5 0 10z" />
            </marker>
          ))}
        </defs>
        <g transform={`translate(${view.x} ${view.y}) scale(${view.k})`}>
          {placed.edges.map(({ edge: drawn, path, middle }) => {
            const edge = now.get(edgeId(drawn)) ?? drawn;
            const id = edgeId(edge);
            const thick = 1.4 + Math.min(Math.log10(1 + edge.rate * 10), 4) * 1.5;
            return (
              <g
                key={id}
                class={`edge ${tone(edge)}${chosen === id ? " chosen" : ""}${dim(id)}`}
                tabindex={0}
                role="button"
                aria-pressed={chosen === id}
                aria-label={`${name(edge.from)} calls ${name(edge.to)}: ${rate(edge.rate)} requests per second, ${share(edge.error_share)} failed, 95th percentile ${duration(edge.p95_ms)}`}
                onClick={() => choose(chosen === id ? "" : id)}
                onKeyDown={press(id)}
              >
                <path class="hit" d={path} />
                <path class="line" d={path} stroke-width={thick} marker-end={`url(#arrow-${tone(edge)})`} />
                {edge.rate > 0 && <path class="flow" d={path} stroke-width={Math.max(thick * 0.5, 1.2)} />}
                <text x={middle.x} y={middle.y - 7} text-anchor="middle">
                  {rate(edge.rate)}/s{edge.error_share >= 0.001 ? ` · ${share(edge.error_share)}` : ""}
                </text>
              </g>
            );
          })}
          {placed.nodes.map((p) => {
            const node = nodes.get(p.node.id) ?? p.node;
            return (
              <g
                key={node.id}
                class={`node ${node.type} ${node.health}${chosen === node.id ? " chosen" : ""}${dim(node.id)}`}
                transform={`translate(${p.x} ${p.y})`}
                tabindex={0}
                role="button"
                aria-pressed={chosen === node.id}
                aria-label={`${KINDS[node.type] ?? node.type} ${name(node.id)}${node.red ? `: ${rate(node.red.rate)} requests per second, ${share(node.red.error_share)} failed` : ""}`}
                onClick={() => choose(chosen === node.id ? "" : node.id)}
                onDblClick={() => node.service !== null && go(to(`service/${node.service}`))}
                onKeyDown={press(node.id)}
              >
                <Shape {...p} node={node} />
              </g>
            );
          })}
        </g>
      </svg>
      <p class="legend">
        <span><i class="key service" /> service</span>
        <span><i class="key database" /> database</span>
        <span><i class="key queue" /> queue</span>
        <span><i class="key external" /> outside</span>
        <span class="hint">width: requests/s · colour: failed · click for figures, double-click opens</span>
      </p>
    </div>
  );
}

function Shape({ node, w, h }: Placed): JSX.Element {
  const [x, y] = [-w / 2, -h / 2];
  const detail = node.red
    ? `${rate(node.red.rate)}/s · p95 ${duration(node.red.p95_ms)}`
    : node.type === "service"
      ? node.language
      : (KINDS[node.type] ?? node.type);
  let outline: JSX.Element;
  if (node.type === "database") {
    outline = (
      <>
        <path class="shape" d={`M${x} ${y + 8}v${h - 16}a${w / 2} 8 0 0 0 ${w} 0v${16 - h}a${w / 2} 8 0 0 0 ${-w} 0z`} />
        <path class="rim" d={`M${x} ${y + 8}a${w / 2} 8 0 0 0 ${w} 0`} />
      </>
    );
  } else if (node.type === "queue") {
    outline = (
      <>
        <path class="shape" d={`M${x + 8} ${y}h${w - 16}a8 ${h / 2} 0 0 1 0 ${h}h${16 - w}a8 ${h / 2} 0 0 1 0 ${-h}z`} />
        <path class="rim" d={`M${x + w - 8} ${y}a8 ${h / 2} 0 0 0 0 ${h}`} />
      </>
    );
  } else if (node.type === "service") {
    outline = (
      <>
        <rect class="shape" x={x} y={y} width={w} height={h} rx="12" />
        <path class="mark" d={`M${x + 1.5} ${y + 13}v${h - 26}`} />
      </>
    );
  } else if (node.type === "dns") {
    outline = <path class="shape" d={`M${x} 0 ${x + 16} ${y}H${-x - 16}L${-x} 0 ${-x - 16} ${-y}H${x + 16}z`} />;
  } else {
    outline = <rect class="shape" x={x} y={y} width={w} height={h} rx={h / 2} />;
  }
  const low = node.type === "database" ? 5 : 0;
  return (
    <>
      {outline}
      <text class="name" y={low - 3} text-anchor="middle">{short(safe(node.name), 26)}</text>
      <text class="detail" y={low + 14} text-anchor="middle">{short(safe(detail), 30)}</text>
    </>
  );
}

function Details(props: { map: ServiceMap; chosen: string; choose: (id: string) => void }): JSX.Element {
  const { map, chosen, choose } = props;
  const node = map.nodes.find((n) => n.id === chosen);
  const edge = map.edges.find((e) => edgeId(e) === chosen);
  const find = (id: string): MapNode | undefined => map.nodes.find((n) => n.id === id);
  if (edge) {
    const [from, target] = [find(edge.from), find(edge.to)];
    const seenBy = edge.measured_at === "client" ? from : target;
    return (
      <aside class="panel details" aria-label="The chosen edge">
        <header>
          <h2><T>{from?.name ?? edge.from}</T> → <T>{target?.name ?? edge.to}</T></h2>
          <button type="button" class="icon" aria-label="close" onClick={() => choose("")}>×</button>
        </header>
        <Figures red={edge} />
        <p class="hint">measured at the {edge.measured_at}</p>
        <h3>most asked for</h3>
        <ul class="plain">
          {edge.operations.map((name) => (
            <li key={name}>
              <a href={to("traces", { service: seenBy?.service, operation: name, kind: edge.measured_at })}><T>{name}</T></a>
            </li>
          ))}
        </ul>
        <p class="actions">
          <a class="button" href={to("traces", { service: seenBy?.service, status: "error", kind: edge.measured_at })}>failed requests</a>
        </p>
      </aside>
    );
  }
  if (node) {
    const calls = map.edges.filter((e) => e.from === node.id);
    const called = map.edges.filter((e) => e.to === node.id);
    return (
      <aside class="panel details" aria-label="The chosen node">
        <header>
          <h2><HealthMark health={node.health} /> <T>{node.name}</T></h2>
          <button type="button" class="icon" aria-label="close" onClick={() => choose("")}>×</button>
        </header>
        <p class="hint">{KINDS[node.type] ?? node.type}{node.language ? ` · ${node.language}` : ""}</p>
        {node.red && <Figures red={node.red} />}
        {called.length > 0 && <EdgeList title="called by" edges={called} end="from" find={find} choose={choose} />}
        {calls.length > 0 && <EdgeList title="calls" edges={calls} end="to" find={find} choose={choose} />}
        {node.service !== null && (
          <p class="actions"><a class="button" href={to(`service/${node.service}`)}>open the service</a></p>
        )}
      </aside>
    );
  }
  const worst = [...map.edges].sort((a, b) => b.error_share - a.error_share || b.rate - a.rate).slice(0, 12);
  return (
    <aside class="panel details" aria-label="All edges">
      <header><h2>Who calls whom</h2></header>
      <ul class="plain edges">
        {worst.map((e) => (
          <li key={edgeId(e)}>
            <button type="button" class="link" onClick={() => choose(edgeId(e))}>
              <T>{find(e.from)?.name ?? e.from}</T> → <T>{find(e.to)?.name ?? e.to}</T>
            </button>
            <span class={e.error_share >= 0.01 ? "bad" : "dim"}>{rate(e.rate)}/s · {share(e.error_share)}</span>
          </li>
        ))}
      </ul>
    </aside>
  );
}

function EdgeList(props: {
  title: string;
  edges: MapEdge[];
  end: "from" | "to";
  find: (id: string) => MapNode | undefined;
  choose: (id: string) => void;
}): JSX.Element {
  return (
    <>
      <h3>{props.title}</h3>
      <ul class="plain edges">
        {props.edges.map((e) => (
          <li key={edgeId(e)}>
            <button type="button" class="link" onClick={() => props.choose(edgeId(e))}>
              <T>{props.find(e[props.end])?.name ?? e[props.end]}</T>
            </button>
            <span class={e.error_share >= 0.01 ? "bad" : "dim"}>{rate(e.rate)}/s · {share(e.error_share)}</span>
          </li>
        ))}
      </ul>
    </>
  );
}

function Figures({ red }: { red: { rate: number; error_share: number; p50_ms: number | null; p95_ms: number | null; p99_ms: number | null } }): JSX.Element {
  return (
    <dl class="facts">
      <Fact name="requests/s">{rate(red.rate)}</Fact>
      <Fact name="failed"><span class={red.error_share >= 0.01 ? "bad" : ""}>{share(red.error_share)}</span></Fact>
      <Fact name="p50">{duration(red.p50_ms)}</Fact>
      <Fact name="p95">{duration(red.p95_ms)}</Fact>
      <Fact name="p99">{duration(red.p99_ms)}</Fact>
    </dl>
  );
}
