/** The JSON API: types, requests and the live stream.  Nothing here talks to any other host. */

export interface Red {
  count: number;
  rate: number;
  errors: number;
  error_share: number;
  p50_ms: number | null;
  p95_ms: number | null;
  p99_ms: number | null;
}
export type Curve = (number | null)[];
export interface Side extends Red {
  spark: { rate: Curve; errors: Curve; p95_ms: Curve };
}
export type Health = "failing" | "degraded" | "slower" | "ok" | "idle";
export interface ServiceRow {
  id: number;
  name: string;
  language: string;
  since_s: number;
  seen_s: number;
  processes: number;
  server: Side | null;
  client: Side | null;
  health: Health;
  why: string;
}
export interface Unseen {
  what: string;
  count: number;
  why: string;
}
export interface Brief {
  version: string;
  uptime_s: number;
  cpu_share: number;
  rss_bytes: number;
  processes: number;
  requests: number;
  lost: number;
}
interface Times {
  now_s: number;
  start_s: number;
  step_s: number;
  steps: number;
}
export interface Overview extends Times {
  services: ServiceRow[];
  unseen: Unseen[];
  agent: Brief;
}
export interface MapNode {
  id: string;
  type: string;
  name: string;
  service: number | null;
  language: string;
  health: Health;
  red: Red | null;
}
export interface MapEdge extends Red {
  from: string;
  to: string;
  measured_at: string;
  operations: string[];
}
export interface ServiceMap extends Times {
  nodes: MapNode[];
  edges: MapEdge[];
}
export interface Charts {
  total: Red;
  rate_by_status: Record<string, Curve>;
  errors: Curve;
  p50_ms: Curve;
  p95_ms: Curve;
  p99_ms: Curve;
  heat: { low_ms: number[]; ratio: number; cells: number[][] };
}
export interface Operation extends Red {
  kind: string;
  name: string;
  mean_ms: number;
  time_share: number;
}
export interface Neighbour extends Red {
  type: string;
  name: string;
  service: number | null;
}
export interface ProcessUse {
  pid: number;
  executable: string;
  command: string;
  language: string;
  instance: string;
  since_s: number;
  cpu_share: number | null;
  cpu_s: number | null;
  rss_bytes: number | null;
  threads: number | null;
}
export interface Service extends Times {
  id: number;
  name: string;
  language: string;
  since_s: number;
  main: "server" | "client";
  sides: Partial<Record<"server" | "client", Charts>>;
  operations: Operation[];
  callers: Neighbour[];
  callees: Neighbour[];
  processes: { running: ProcessUse[]; ended: number };
}
export interface SpanRow {
  id: number;
  trace_id: string;
  span_id: string;
  service: number;
  service_name: string;
  name: string;
  kind: string;
  protocol: string;
  error: boolean;
  code: string;
  start_unix_ns: string;
  start_ms: number;
  duration_ms: number;
  kept_as: string;
  target: string;
}
export interface TraceSummary {
  spans: number;
  errors: number;
  duration_ms: number;
  services: string[];
  root: { name: string; service: string };
}
export interface Search {
  spans: SpanRow[];
  traces: Record<string, TraceSummary>;
  cursor: number | null;
  complete: boolean;
}
export interface Endpoint {
  address: string;
  port: number;
}
export interface Span extends SpanRow {
  parent_span_id: string;
  parent_source: string;
  missing_parent: boolean;
  depth: number;
  offset_ms: number;
  request_ms: number | null;
  response_start_ms: number | null;
  processing_ms: number | null;
  queue_ms: number | null;
  request_bytes: number | null;
  response_bytes: number | null;
  local: Endpoint;
  remote: Endpoint;
  pid: number;
  tid: number;
  connection: string;
  stream: boolean;
  other_side: string | null;
  attributes: Record<string, unknown>;
  resource: Record<string, unknown>;
}
export interface Trace {
  trace_id: string;
  start_ms: number;
  duration_ms: number;
  services: string[];
  errors: number;
  spans: Span[];
}
export interface Agent extends Brief {
  pid: number;
  kernel: string;
  host: string;
  hook: string;
  programs: {
    name: string;
    runs: number;
    missed: number;
    verified: number;
    ns_per_run: number | null;
    time_ns: number;
    core_share: number | null;
  }[];
  measuring: { on: boolean; refused: string };
  tls: { probed: number; refused: string };
  rings: { record_bytes: number; fill: number }[];
  drain: { interval_s: number; rounds: number; cpu_s: number };
  losses: { reason: string; count: number; why: string }[];
  unseen: Unseen[];
  series: { alive: number; limit: number; overflowed: number };
  strings: { used: number; limit: number };
  sampling: { sampler: string; seen: number; kept: number };
  exporters: {
    name: string;
    sent: number;
    dropped: Record<string, number>;
    queued: number;
    queued_bytes: number;
    failures: number;
    last_error: string;
    last_error_unix_ns: number;
    last_success_unix_ns: number;
  }[];
  store: {
    path: string;
    bytes: number;
    file_bytes: number;
    max_bytes: number;
    dropped: number;
    undetailed: number;
    spans_kept: number;
    spans_thinned: number;
    failures: number;
    last_error: string;
    cpu_s: number;
    spans: number;
    oldest_s: number;
  } | null;
  notes: string[];
}
export interface ConfigValue {
  key: string;
  value: unknown;
  source: string;
}
export interface ProcessRow {
  pid: number;
  watched: boolean;
  reason: string;
  executable: string;
  service: string;
  name_source: string;
  language: string;
  ports: number[];
  tls: string[];
}
export interface ServiceName {
  id: number;
  name: string;
  language: string;
  operations: string[];
}

export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

let token = "";

/** A token may come in the fragment, which no server and no log sees; it is kept for this tab only. */
export function findToken(): void {
  const given = /^#token=(.+)$/.exec(location.hash);
  if (given?.[1]) {
    setToken(decodeURIComponent(given[1]));
    history.replaceState(null, "", "#/");
  } else {
    token = sessionStorage.getItem("token") ?? "";
  }
}

export function setToken(value: string): void {
  token = value;
  sessionStorage.setItem("token", value);
}

const fields = (): HeadersInit => (token ? { Authorization: `Bearer ${token}` } : {});

export async function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  const response = await fetch(path, { headers: fields(), signal, credentials: "omit" });
  if (!response.ok) {
    let message = await response.text();
    try {
      message = (JSON.parse(message) as { error?: string }).error ?? message;
    } catch {
      /* plain text */
    }
    throw new ApiError(response.status, message.trim() || response.statusText);
  }
  return (await response.json()) as T;
}

export type Listener = (event: string, data: unknown) => void;

/** Server-sent events, read by fetch so that the token can go along; comes back by itself after a break. */
export function listen(
  path: string,
  on: Listener,
  state: (connected: boolean, err?: ApiError) => void,
): () => void {
  const stop = new AbortController();
  const run = async (): Promise<void> => {
    for (let wait = 500; !stop.signal.aborted; wait = Math.min(wait * 2, 10_000)) {
      try {
        const response = await fetch(path, {
          headers: { ...fields(), Accept: "text/event-stream" },
          signal: stop.signal,
          credentials: "omit",
        });
        if (!response.ok || !response.body) throw new ApiError(response.status, await response.text());
        state(true);
        wait = 500;
        await read(response.body, on);
      } catch (err) {
        if (stop.signal.aborted) return;
        state(false, err instanceof ApiError ? err : undefined);
        if (err instanceof ApiError && err.status === 401) return;
      }
      state(false);
      await new Promise((done) => setTimeout(done, wait));
    }
  };
  void run();
  return () => stop.abort();
}

async function read(body: ReadableStream<Uint8Array>, on: Listener): Promise<void> {
  const reader = body.pipeThrough(new TextDecoderStream() as unknown as TransformStream<Uint8Array, string>).getReader();
  let left = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    left += value;
    let end: number;
    while ((end = left.indexOf("\n\n")) >= 0) {
      let event = "message";
      let data = "";
      for (const line of left.slice(0, end).split("\n")) {
        if (line.startsWith("event: ")) event = line.slice(7);
        else if (line.startsWith("data: ")) data += line.slice(6);
      }
      left = left.slice(end + 2);
      if (data) on(event, JSON.parse(data));
    }
  }
}
