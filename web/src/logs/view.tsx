// The log with its filters. Only the lines in sight are in the document, so 100,000 of them scroll like 100.

import { useComputed, useSignal, useSignalEffect } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import type { LogLine, LogSource } from "../api";
import { clock, count } from "../text";
import { plain, spans } from "./ansi";
import { LogFollower } from "./follow";
import { LEVELS, type Level } from "./store";

const ROW = 20;
const SPARE = 20;

export function Logs({ agent, sources }: { agent: string; sources: LogSource[] }) {
  const follower = useMemo(() => new LogFollower(agent), [agent]);
  useEffect(() => () => follower.close(), [follower]);
  const text = useSignal("");
  const level = useSignal<Level>("trace");
  const source = useSignal("");
  const pinned = useSignal(true);
  const chosen = useSignal<LogLine | null>(null);

  useSignalEffect(() => {
    follower.store.setFilter({ text: text.value, level: level.value, source: source.value });
    follower.changed();
  });

  const shown = useComputed(() => (follower.version.value, follower.store.visible.length));
  const total = useComputed(() => (follower.version.value, follower.store.total));

  return (
    <section class="logs" aria-label="Logs">
      <div class="bar">
        <input
          type="search"
          placeholder="Search the log"
          aria-label="Search the log"
          value={text.value}
          onInput={(event) => (text.value = event.currentTarget.value)}
        />
        <select aria-label="Least level" value={level.value} onChange={(e) => (level.value = e.currentTarget.value as Level)}>
          {LEVELS.map((name) => (
            <option key={name} value={name}>
              {name === "trace" ? "all levels" : name === "error" ? "error" : `${name} and above`}
            </option>
          ))}
        </select>
        <select aria-label="Source" value={source.value} onChange={(event) => (source.value = event.currentTarget.value)}>
          <option value="">all sources</option>
          {sources.map(({ id, display_name }) => (
            <option key={id} value={id}>
              {display_name}
            </option>
          ))}
        </select>
        <label class="check">
          <input type="checkbox" checked={pinned.value} onChange={(e) => (pinned.value = e.currentTarget.checked)} />
          Follow
        </label>
        <span class="grow" />
        <span class="count" role="status">
          {shown.value === total.value ? "" : `${count(shown.value)} of `}
          {count(total.value)} lines
          {follower.store.dropped > 0 && `, ${count(follower.store.dropped)} older ones let go`}
          {!follower.open.value && " · not connected"}
        </span>
        <a class="button" href={`/api/v2/workspaceagents/${agent}/logs?format=text`} download={`${agent}.log`}>
          Download
        </a>
      </div>
      <List follower={follower} sources={sources} pinned={pinned.value} unpin={() => (pinned.value = false)} chosen={chosen} />
      {chosen.value && (
        <div class="line-detail" role="region" aria-label="The whole line">
          <div class="bar">
            <time dateTime={chosen.value.created_at}>{new Date(chosen.value.created_at).toLocaleString()}</time>
            <span class="grow" />
            <button class="quiet" onClick={() => (chosen.value = null)}>
              Close
            </button>
          </div>
          <pre tabIndex={0}>{plain(chosen.value.output)}</pre>
        </div>
      )}
    </section>
  );
}

interface ListProps {
  follower: LogFollower;
  sources: LogSource[];
  pinned: boolean;
  unpin: () => void;
  /** The line that is shown as a whole. */
  chosen: { value: LogLine | null };
}

function List({ follower, sources, pinned, unpin, chosen }: ListProps) {
  const box = useRef<HTMLDivElement>(null);
  const top = useSignal(0);
  const height = useSignal(400);
  const names = useMemo(() => new Map(sources.map(({ id, display_name }) => [id, display_name])), [sources]);
  const version = follower.version.value;
  const lines = follower.store.visible;

  useEffect(() => {
    const element = box.current;
    if (!element) return;
    const watcher = new ResizeObserver(() => (height.value = element.clientHeight));
    watcher.observe(element);
    return () => watcher.disconnect();
  }, []);
  useEffect(() => {
    if (pinned && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [version, pinned, height.value]);

  const choose = (index: number) => {
    const line = lines[Math.max(0, Math.min(index, lines.length - 1))];
    const element = box.current;
    if (!line || !element) return;
    unpin();
    chosen.value = line;
    const at = lines.indexOf(line) * ROW;
    if (at < element.scrollTop) element.scrollTop = at;
    else if (at + ROW > element.scrollTop + element.clientHeight) element.scrollTop = at + ROW - element.clientHeight;
  };
  const key = (event: KeyboardEvent) => {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const now = chosen.value ? lines.indexOf(chosen.value) : -1;
    if (event.key === "Escape") chosen.value = null;
    else if (event.key === "Enter" && now < 0) choose(Math.floor((top.value + height.value) / ROW) - 1);
    else if (step && now >= 0) choose(now + step);
    else return;
    event.preventDefault();
  };

  const first = Math.max(0, Math.floor(top.value / ROW) - SPARE);
  const last = Math.min(lines.length, Math.ceil((top.value + height.value) / ROW) + SPARE);
  return (
    <div
      class="lines"
      ref={box}
      tabIndex={0}
      role="log"
      aria-live="off"
      aria-label="Lines; Enter shows one as a whole, the arrows go on from it"
      onKeyDown={key}
      onScroll={(event) => {
        const element = event.currentTarget;
        const up = element.scrollTop < top.value;
        top.value = element.scrollTop;
        if (up && element.scrollHeight - element.scrollTop - element.clientHeight > 2 * ROW) unpin();
      }}
    >
      <div style={{ height: `${lines.length * ROW}px`, position: "relative" }}>
        {lines.slice(first, last).map((line, index) => (
          <div
            class={`line ${line.level} ${line === chosen.value ? "chosen" : ""}`}
            key={line.id}
            style={{ top: `${(first + index) * ROW}px` }}
            onClick={() => getSelection()?.isCollapsed !== false && (chosen.value = line)}
          >
            <time dateTime={line.created_at}>{clock(line.created_at)}</time>
            <span class="level">{line.level}</span>
            <span class="source">{names.get(line.source_id) ?? ""}</span>
            <span class="output">
              {spans(line.output).map((span, number) => (
                <span key={number} class={span.classes}>
                  {span.text}
                </span>
              ))}
            </span>
          </div>
        ))}
      </div>
    </div>
  );
}
