/** Where the nodes of the service map stand: layered by dagre. */

import { graphlib, layout as place } from "@dagrejs/dagre";
import type { MapEdge, MapNode, ServiceMap } from "./api";

export interface Placed {
  node: MapNode;
  x: number;
  y: number;
  w: number;
  h: number;
}
export interface Routed {
  edge: MapEdge;
  path: string;
  middle: { x: number; y: number };
}
export interface Layout {
  nodes: Placed[];
  edges: Routed[];
  width: number;
  height: number;
}

export const shapeOf = (map: ServiceMap): string =>
  map.nodes.map((n) => `${n.id}\u0001${n.name}`).join("\u0002") +
  map.edges
    .map((e) => `${e.from}\u0001${e.to}`)
    .sort()
    .join("\u0002");

export function layout(map: ServiceMap, direction: "LR" | "TB"): Layout {
  const graph = new graphlib.Graph({ multigraph: false });
  graph.setGraph({ rankdir: direction, nodesep: 36, ranksep: direction === "LR" ? 110 : 64, marginx: 24, marginy: 24 });
  graph.setDefaultEdgeLabel(() => ({}));
  for (const node of map.nodes) {
    const letters = Math.min(node.name.length, 26);
    graph.setNode(node.id, { width: Math.max(node.type === "service" ? 166 : 128, 50 + letters * 7.4), height: node.type === "service" ? 60 : 52 });
  }
  for (const edge of map.edges) if (edge.from !== edge.to) graph.setEdge(edge.from, edge.to, {});
  place(graph);
  const at = new Map<string, Placed>();
  for (const node of map.nodes) {
    const found = graph.node(node.id) as unknown as { x: number; y: number; width: number; height: number };
    at.set(node.id, { node, x: found.x, y: found.y, w: found.width, h: found.height });
  }
  const edges: Routed[] = [];
  for (const edge of map.edges) {
    const from = at.get(edge.from);
    const to = at.get(edge.to);
    if (!from || !to) continue;
    if (edge.from === edge.to) {
      const { x, y, w, h } = from;
      const path = `M${x - w / 4} ${y - h / 2}C${x - w / 3} ${y - h * 1.4} ${x + w / 3} ${y - h * 1.4} ${x + w / 4} ${y - h / 2}`;
      edges.push({ edge, path, middle: { x, y: y - h * 1.1 } });
      continue;
    }
    const label = graph.edge(edge.from, edge.to) as unknown as { points: { x: number; y: number }[] };
    edges.push({ edge, path: smooth(label.points), middle: label.points[Math.floor(label.points.length / 2)] ?? from });
  }
  const size = graph.graph() as unknown as { width?: number; height?: number };
  return { nodes: [...at.values()], edges, width: size.width ?? 300, height: size.height ?? 200 };
}

/** A curve through the middles of the stretches between points. */
function smooth(points: { x: number; y: number }[]): string {
  const [first, ...rest] = points;
  if (!first) return "";
  let path = `M${first.x} ${first.y}`;
  rest.forEach((p, i) => {
    const next = rest[i + 1];
    if (!next) path += `L${p.x} ${p.y}`;
    else path += `Q${p.x} ${p.y} ${(p.x + next.x) / 2} ${(p.y + next.y) / 2}`;
  });
  return path;
}
