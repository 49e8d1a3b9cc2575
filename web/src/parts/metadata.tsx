import { useEffect, useMemo, useRef } from "preact/hooks";
import type { MetadataItem } from "../api";
import { follow } from "../live";
import { Graph, numberIn } from "./graph";
import { duration } from "../text";

const KEPT = 60;

/** What the metadata scripts say, with the course of the numbers since the page was opened. */
export function Metadata({ agent }: { agent: string }) {
  const live = useMemo(() => follow<MetadataItem[]>(`workspaceagents/${agent}/watch-metadata`), [agent]);
  useEffect(() => () => live.close(), [live]);
  const courses = useRef(new Map<string, { at: string; values: number[] }>());
  const items = live.value.value;
  if (!items?.length) return null;
  for (const { result, description } of items) {
    const value = numberIn(result.value);
    const course = courses.current.get(description.key) ?? { at: "", values: [] };
    if (value !== null && course.at !== result.collected_at) {
      course.at = result.collected_at;
      course.values = [...course.values, value].slice(-KEPT);
    }
    courses.current.set(description.key, course);
  }
  return (
    <section aria-label="Metadata">
      <h2>Metadata</h2>
      <div class="metadata">
        {items.map(({ result, description }) => {
          // Interval 0: collected once.
          const stale = description.interval > 0 && result.age > description.interval * 3 + 5;
          return (
            <div class={`item ${stale ? "stale" : ""}`} key={description.key}>
              <div class="name">{description.display_name || description.key}</div>
              <div class={result.error ? "value bad" : "value"} title={result.error || result.value}>
                {result.error || result.value || "–"}
              </div>
              <Graph values={courses.current.get(description.key)?.values ?? []} label={`${description.display_name} over time`} />
              {stale && <div class="age">{duration(result.age)} old</div>}
            </div>
          );
        })}
      </div>
    </section>
  );
}
