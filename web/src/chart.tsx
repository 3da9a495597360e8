/** Charts over time, by uPlot, in the colours of the theme. */

import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import type { Curve } from "./api";
import { clock } from "./format";
import { useLive, useWidth } from "./hooks";

export interface Line {
  name: string;
  values: Curve;
  /** Name of a colour of the style sheet. */
  color: string;
}

const sync = uPlot.sync("time");

export function color(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function stacked(lines: Line[]): Curve[] {
  const out: Curve[] = [];
  for (const line of lines) {
    const below = out.at(-1);
    out.push(line.values.map((v, i) => (v === null ? null : v + (below?.[i] ?? 0))));
  }
  return out;
}

/** Whole decades, or 1, 2 and 5 of one, around the values. */
function decades(min: number | null, max: number | null): [number, number] {
  if (!min || !max || min <= 0) return [0.1, 10];
  const round = (value: number, up: boolean): number => {
    const power = 10 ** Math.floor(Math.log10(value));
    const steps = [1, 2, 5, 10].map((n) => n * power);
    return (up ? steps.find((n) => n >= value * 1.05) : steps.findLast((n) => n <= value * 0.95)) ?? (up ? 10 * power : 0.5 * power);
  };
  return [round(min, false), round(max, true)];
}

/** Where a logarithmic axis has its lines: at 1, 2 and 5 of each decade, at the decades alone where there are many. */
function marks(min: number, max: number): number[] {
  const out: number[] = [];
  const first = Math.floor(Math.log10(min));
  const last = Math.ceil(Math.log10(max));
  for (let p = first; p <= last; p++)
    for (const n of last - first > 3 ? [1] : last - first > 1 ? [1, 3] : [1, 2, 5]) if (n * 10 ** p >= min * 0.999 && n * 10 ** p <= max * 1.001) out.push(n * 10 ** p);
  return out;
}

/** While nothing is pointed at, the legend tells the last whole step. */
function rest(plot: uPlot): void {
  // uPlot draws, and empties its legend, after the current task
  setTimeout(() => {
    const last = plot.data[0].length - 2;
    if (last >= 0 && plot.root.isConnected && (plot.cursor.left ?? -1) < 0) plot.setLegend({ idx: last });
  }, 20);
}

export function Chart(props: {
  label: string;
  start: number;
  step: number;
  lines: Line[];
  format: (value: number) => string;
  stack?: boolean;
  /** Every tenfold takes the same room: for values that differ much. */
  log?: boolean;
  height?: number;
}): JSX.Element {
  const [box, width] = useWidth<HTMLDivElement>();
  const plot = useRef<uPlot | null>(null);
  const { theme } = useLive();
  const { lines, start, step, format, stack, log } = props;
  const height = props.height ?? 180;
  // a legend entry that comes or goes needs another plot, new values do not
  const shape = `${lines.map((l) => l.name).join("\u0001")}|${theme}`;
  const shown = useRef(lines);
  shown.current = lines;

  const data = (): uPlot.AlignedData => {
    const now = shown.current;
    const x = now[0]?.values.map((_, i) => start + i * step) ?? [];
    // stacked areas are drawn from the top down, so that each hides what is below it
    const ys = stack ? stacked(now).reverse() : now.map((l) => l.values);
    return [x, ...ys] as uPlot.AlignedData;
  };

  useEffect(() => {
    if (!box.current || !width || !lines.length) return;
    const order = stack ? [...lines].reverse() : lines;
    const text = color("muted");
    const grid = color("grid");
    const axis = { stroke: text, grid: { stroke: grid, width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    const made = new uPlot(
      {
        width,
        height,
        padding: [8, 20, 0, 0],
        cursor: { sync: { key: sync.key }, points: { size: 6 }, drag: { x: false, y: false } },
        legend: { live: true },
        scales: {
          x: { time: true },
          y: log
            ? { distr: 3, range: (_u, min, max) => decades(min, max) }
            : { range: (_u, _min, max) => [0, max > 0 ? max * 1.12 : 1] },
        },
        axes: [
          { ...axis, grid: { show: false }, space: 64, size: 26, values: (_u, ticks) => ticks.map((t) => clock(t * 1000).slice(0, 5)) },
          { ...axis, size: 62, space: 36, ...(log ? { splits: (_u: uPlot, _i: number, min: number, max: number) => marks(min, max) } : {}), values: (_u, ticks) => ticks.map((t) => (t === null ? "" : t === 0 ? "0" : format(t))) },
        ],
        series: [
          { label: "time", value: (_u, t) => (t ? clock(t * 1000) : "–") },
          ...order.map((line) => ({
            label: line.name,
            stroke: color(line.color),
            fill: stack ? color(`${line.color}-soft`) : undefined,
            width: 1.6,
            points: { show: false },
            spanGaps: false,
            value: (_u: uPlot, v: number | null, _s: number, i: number | null): string => {
              if (v === null || i === null) return "–";
              const own = stack ? shown.current.find((l) => l.name === line.name)?.values[i] : v;
              return own === null || own === undefined ? "–" : format(own);
            },
          })),
        ],
      },
      data(),
      box.current,
    );
    plot.current = made;
    rest(made);
    made.over.addEventListener("mouseleave", () => rest(made));
    return () => {
      plot.current = null;
      made.destroy();
    };
  }, [shape, width > 0]);

  useEffect(() => {
    const drawn = plot.current;
    if (!drawn) return;
    drawn.setData(data());
    rest(drawn);
  }, [lines, start, step]);
  useEffect(() => {
    if (width) plot.current?.setSize({ width, height });
  }, [width, height]);

  const last = lines.map((l) => `${l.name} ${format(l.values.findLast((v) => v !== null) ?? 0)}`).join(", ");
  return <div class="chart" ref={box} role="img" aria-label={`${props.label}; now: ${last}`} />;
}
