// Log lines in memory, and which of them the filters let through. No DOM.

import type { LogLine } from "../api";

export const LEVELS = ["trace", "debug", "info", "warn", "error"] as const;
export type Level = (typeof LEVELS)[number];

export interface Filter {
  text: string;
  level: Level;
  /** Empty: all. */
  source: string;
}

export const MAX_LINES = 200_000;

/** Keeps the newest `MAX_LINES`. Filtering is done once per line and again only when the filter changes. */
export class LogStore {
  private lines: LogLine[] = [];
  private shown: LogLine[] = [];
  private matches: (line: LogLine) => boolean = () => true;
  /** Lines that were let go because there were too many. */
  dropped = 0;

  get total(): number {
    return this.lines.length;
  }

  get visible(): readonly LogLine[] {
    return this.shown;
  }

  get lastId(): number {
    return this.lines.at(-1)?.id ?? 0;
  }

  /** Lines that are known already are ignored: after a reconnect the server may say some again. */
  add(lines: readonly LogLine[]): void {
    const last = this.lastId;
    const fresh = lines.filter((line) => line.id > last);
    for (const line of fresh) {
      this.lines.push(line);
      if (this.matches(line)) this.shown.push(line);
    }
    // Cut in large steps: taking away from the front costs as much as there is behind.
    if (this.lines.length > MAX_LINES * 1.1) {
      const excess = this.lines.length - MAX_LINES;
      this.dropped += excess;
      this.lines = this.lines.slice(excess);
      const first = this.lines[0]?.id ?? 0;
      this.shown = this.shown.filter((line) => line.id >= first);
    }
  }

  setFilter(filter: Filter): void {
    const lowest = LEVELS.indexOf(filter.level);
    const text = filter.text.toLowerCase();
    this.matches = (line) =>
      LEVELS.indexOf(line.level) >= lowest &&
      (!filter.source || line.source_id === filter.source) &&
      (!text || line.output.toLowerCase().includes(text));
    this.shown = this.lines.filter(this.matches);
  }
}
