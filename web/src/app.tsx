/** The frame around the views: navigation, range, theme, and what onlooker costs. */

import type { JSX } from "preact";
import { useEffect, useMemo, useState } from "preact/hooks";
import { listen, setToken, type ApiError, type Overview as OverviewData } from "./api";
import { ago, bytes, count, rate, share } from "./format";
import { LiveContext, useLive, type Live } from "./hooks";
import { hue } from "./parts";
import { change, to, useRoute } from "./route";
import { AgentView } from "./views/agent";
import { MapView } from "./views/map";
import { OverviewView } from "./views/overview";
import { ServiceView } from "./views/service";
import { TraceView } from "./views/trace";
import { TracesView } from "./views/traces";

export const RANGES: [number, string][] = [
  [300, "5 min"],
  [900, "15 min"],
  [3600, "1 h"],
  [21600, "6 h"],
  [86400, "24 h"],
];

/** Without a choice: a quarter of an hour, or less while there is not so much to see. */
function usual(overview: OverviewData | null): number {
  if (!overview?.services.length) return 900;
  return overview.now_s - Math.min(...overview.services.map((s) => s.since_s)) < 600 ? 300 : 900;
}

function storedTheme(): string {
  try {
    return localStorage.getItem("theme") ?? "";
  } catch {
    return "";
  }
}

export function App(): JSX.Element {
  const route = useRoute();
  const [overview, setOverview] = useState<OverviewData | null>(null);
  const range = Number(route.query.get("range")) || usual(overview);
  const [connected, setConnected] = useState(true);
  const [tick, setTick] = useState(0);
  const [locked, setLocked] = useState(false);
  const [attempt, setAttempt] = useState(0);
  const [chosen, setChosen] = useState(storedTheme);
  const [dark, setDark] = useState(() => matchMedia("(prefers-color-scheme: dark)").matches);
  const theme = chosen || (dark ? "dark" : "light");

  useEffect(() => {
    const query = matchMedia("(prefers-color-scheme: dark)");
    const changed = (): void => setDark(query.matches);
    query.addEventListener("change", changed);
    return () => query.removeEventListener("change", changed);
  }, []);
  useEffect(() => {
    document.documentElement.dataset["theme"] = theme;
  }, [theme]);
  useEffect(
    () =>
      listen(
        `/api/v1/stream?topics=overview&range=${range}`,
        (event, data) => {
          if (event !== "overview") return;
          const found = data as OverviewData;
          for (const one of [...found.services].sort((a, b) => a.id - b.id)) hue(one.name);
          setOverview(found);
          setTick((n) => n + 1);
        },
        (up, err?: ApiError) => {
          setConnected(up);
          if (err?.status === 401) setLocked(true);
        },
      ),
    [range, attempt],
  );
  const live = useMemo<Live>(
    () => ({ overview, connected, tick, range, theme }),
    [overview, connected, tick, range, theme],
  );
  const choose = (next: string): void => {
    setChosen(next);
    try {
      localStorage.setItem("theme", next);
    } catch {
      /* a browser without storage forgets it */
    }
  };
  if (locked) {
    return (
      <Login
        onToken={(value) => {
          setToken(value);
          setLocked(false);
          setAttempt((n) => n + 1);
        }}
      />
    );
  }
  const view = route.parts[0] ?? "overview";
  return (
    <LiveContext.Provider value={live}>
      <a class="skip" href="#main" onClick={(e) => { e.preventDefault(); document.getElementById("main")?.focus(); }}>
        skip to content
      </a>
      <header class="top">
        <a class="brand" href={to("overview")}>
          <img src="/icon.svg" alt="" width="26" height="26" />
          onlooker
        </a>
        <nav aria-label="Views">
          {(["overview", "map", "traces", "agent"] as const).map((name) => (
            <a
              key={name}
              href={to(name)}
              aria-current={view === name || (name === "overview" && view === "service") || (name === "traces" && view === "trace") ? "page" : undefined}
            >
              {name[0]?.toUpperCase() + name.slice(1)}
            </a>
          ))}
        </nav>
        <div class="tools">
          {["overview", "map", "service"].includes(view) && (
            <label class="range">
              <span class="sr">Time range</span>
              <select value={range} onChange={(e) => change({ range: e.currentTarget.value })}>
                {RANGES.map(([seconds, text]) => (
                  <option key={seconds} value={seconds}>
                    last {text}
                  </option>
                ))}
              </select>
            </label>
          )}
          <button
            type="button"
            class="icon"
            onClick={() => choose(theme === "dark" ? "light" : "dark")}
            aria-label={theme === "dark" ? "light colours" : "dark colours"}
            title={theme === "dark" ? "light colours" : "dark colours"}
          >
            <svg viewBox="0 0 20 20" width="18" height="18" aria-hidden="true">
              {theme === "dark" ? (
                <path d="M10 5.500a4.500 4.500 0 1 1 0 9 4.500 4.500 0 0 1 0-9zM10 1v2M10 17v2M1 10h2M17 10h2M3.600 3.600 5 5M15 15l1.400 1.400M3.600 16.400 5 15M15 5l1.400-1.400" />
              ) : (
                <path d="M16.500 12.500A7 7 0 0 1 7.500 3.500a7 7 0 1 0 9 9z" />
              )}
            </svg>
          </button>
        </div>
      </header>
      <main id="main" tabIndex={-1}>
        <View view={view} argument={route.parts[1] ?? ""} />
      </main>
      <Foot />
    </LiveContext.Provider>
  );
}

function View({ view, argument }: { view: string; argument: string }): JSX.Element {
  if (view === "map") return <MapView />;
  if (view === "service") return <ServiceView key={argument} id={argument} />;
  if (view === "traces") return <TracesView />;
  if (view === "trace") return <TraceView key={argument} id={argument} />;
  if (view === "agent") return <AgentView />;
  return <OverviewView />;
}

function Foot(): JSX.Element {
  const { overview, connected } = useLive();
  const agent = overview?.agent;
  const total = overview?.services.reduce((sum, s) => sum + (s.server?.rate ?? 0), 0) ?? 0;
  return (
    <footer class="foot">
      <span class={connected ? "live on" : "live off"} role="status">
        {connected ? "live" : "no connection to onlooker"}
      </span>
      {agent && (
        <>
          <span>{rate(total)} requests/s</span>
          <a href={to(agent.lost ? "agent" : "overview")} class={agent.lost || overview.unseen.length ? "warn" : ""}>
            {agent.lost ? `${count(agent.lost)} lost` : overview.unseen.length ? "some is not seen" : "nothing lost"}
          </a>
          <span>{count(agent.processes)} processes</span>
          <span>
            onlooker {agent.version}: {share(agent.cpu_share)} of a core, {bytes(agent.rss_bytes)}, up {ago(agent.uptime_s)}
          </span>
        </>
      )}
    </footer>
  );
}

function Login({ onToken }: { onToken: (value: string) => void }): JSX.Element {
  const [value, set] = useState("");
  return (
    <main class="login">
      <form
        onSubmit={(e) => {
          e.preventDefault();
          onToken(value);
        }}
      >
        <img src="/icon.svg" alt="" width="48" height="48" />
        <h1>onlooker</h1>
        <label>
          Token (web.token of the configuration)
          <input type="password" autocomplete="off" value={value} onInput={(e) => set(e.currentTarget.value)} />
        </label>
        <button type="submit" class="button">
          Open
        </button>
      </form>
    </main>
  );
}
