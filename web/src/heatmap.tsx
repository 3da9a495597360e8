/** Latency over time: a cell for each step and each stretch of latency, darker where more requests fell. */

import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { color } from "./chart";
import { clock, count, duration } from "./format";
import { useLive, useWidth } from "./hooks";

interface Props {
  start: number;
  step: number;
  low: number[];
  ratio: number;
  cells: number[][];
  onPick: (fromMs: number, toMs: number, lowMs: number, highMs: number) => void;
}

const LEFT = 62;
const BOTTOM = 20;
const HEIGHT = 220;
/* Seconds between two labels of time. */
const WHOLE = [60, 120, 300, 600, 1800, 3600, 7200, 14_400];

export function Heatmap({ start, step, low, ratio, cells, onPick }: Props): JSX.Element {
  const [box, width] = useWidth<HTMLDivElement>();
  const canvas = useRef<HTMLCanvasElement>(null);
  const { theme } = useLive();
  const [said, say] = useState("");
  const columns = cells.length;
  const rows = low.length;
  const cw = (width - LEFT - 8) / Math.max(columns, 1);
  const ch = (HEIGHT - BOTTOM - 8) / Math.max(rows, 1);

  useEffect(() => {
    const element = canvas.current;
    const c = element?.getContext("2d");
    if (!element || !c || !width) return;
    const scale = devicePixelRatio || 1;
    element.width = width * scale;
    element.height = HEIGHT * scale;
    c.setTransform(scale, 0, 0, scale, 0, 0);
    c.clearRect(0, 0, width, HEIGHT);
    const top = Math.max(1, ...cells.flat());
    c.fillStyle = color("heat");
    cells.forEach((column, i) =>
      column.forEach((hits, j) => {
        if (!hits) return;
        c.globalAlpha = 0.12 + 0.88 * (Math.log1p(hits) / Math.log1p(top));
        c.fillRect(LEFT + i * cw, 8 + (rows - 1 - j) * ch, Math.max(cw - 0.5, 1), Math.max(ch - 0.5, 1));
      }),
    );
    c.globalAlpha = 1;
    c.fillStyle = color("muted");
    c.font = "11px system-ui";
    c.textAlign = "right";
    const every = Math.max(1, Math.ceil(22 / ch));
    for (let j = 0; j < rows; j += every) c.fillText(duration(low[j]), LEFT - 6, 8 + (rows - j) * ch - 2);
    c.textAlign = "center";
    const every_s = WHOLE.find((s) => (s / step) * cw >= 56) ?? 14_400;
    for (let i = 0; i < columns; i++)
      if ((start + i * step) % every_s === 0 && LEFT + i * cw < width - 20)
        c.fillText(clock((start + i * step) * 1000).slice(0, 5), LEFT + i * cw, HEIGHT - 5);
  }, [cells, width, theme]);

  const at = (event: MouseEvent): [number, number] | null => {
    const rect = canvas.current?.getBoundingClientRect();
    if (!rect) return null;
    const i = Math.floor((event.clientX - rect.left - LEFT) / cw);
    const j = rows - 1 - Math.floor((event.clientY - rect.top - 8) / ch);
    return i >= 0 && i < columns && j >= 0 && j < rows ? [i, j] : null;
  };
  const span = (i: number, j: number): [number, number, number, number] => {
    const from = (start + i * step) * 1000;
    const lowest = low[j] ?? 0;
    return [from, from + step * 1000, lowest, lowest * ratio];
  };
  const move = (event: MouseEvent): void => {
    const cell = at(event);
    if (!cell) return say("");
    const [from, , a, b] = span(...cell);
    say(`${clock(from)} · ${duration(a)} to ${duration(b)} · ${count(cells[cell[0]]?.[cell[1]] ?? 0)} requests`);
  };
  const pick = (event: MouseEvent): void => {
    const cell = at(event);
    if (cell && cells[cell[0]]?.[cell[1]]) onPick(...span(...cell));
  };
  return (
    <div ref={box} class="heat">
      <canvas
        ref={canvas}
        class="heat-canvas"
        role="img"
        aria-label="Requests by latency over time; the same numbers stand in the latency chart"
        onMouseMove={move}
        onMouseLeave={() => say("")}
        onClick={pick}
      />
      <p class="hint">{said || "click a cell for its requests"}</p>
    </div>
  );
}
