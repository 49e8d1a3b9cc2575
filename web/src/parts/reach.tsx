import { useRef } from "preact/hooks";
import type { Path } from "../api";
import { Graph } from "./graph";

const KEPT = 30;

/** How the control plane reaches the agent, with the course of the round trip since the page was opened. */
export function Reach({ path }: { path: Path }) {
  const course = useRef<{ last: Path | null; values: number[] }>({ last: null, values: [] });
  if (course.current.last !== path) {
    course.current.last = path;
    if (path.latency_ms !== undefined) course.current.values = [...course.current.values, path.latency_ms].slice(-KEPT);
  }
  return (
    <span class="path" title={path.direct ? path.endpoint : `over the relay ${path.region}`}>
      {path.direct ? "direct" : `relayed (${path.region})`}
      {path.latency_ms !== undefined && `, ${path.latency_ms.toFixed(1)} ms`}
      <Graph values={course.current.values} label="Round trip to the agent over time" />
    </span>
  );
}
