import { describe, expect, it } from "vitest";
import type { LogLine } from "../src/api";
import { spans } from "../src/logs/ansi";
import { LogStore, MAX_LINES } from "../src/logs/store";

const line = (id: number, output = `line ${id}`, level: LogLine["level"] = "info", source_id = "s"): LogLine => ({
  id,
  output,
  level,
  source_id,
  created_at: "2026-01-01T00:00:00Z",
});

describe("the log in memory", () => {
  it("ignores what it knows already", () => {
    const store = new LogStore();
    store.add([line(1), line(2)]);
    store.add([line(2), line(3)]);
    expect(store.visible.map(({ id }) => id)).toEqual([1, 2, 3]);
    expect(store.lastId).toBe(3);
  });

  it("filters by text, level and source, also what comes later", () => {
    const store = new LogStore();
    store.add([line(1, "Hello"), line(2, "world", "error"), line(3, "hello", "debug", "other")]);
    store.setFilter({ text: "hello", level: "info", source: "s" });
    store.add([line(4, "say HELLO", "warn"), line(5, "no")]);
    expect(store.visible.map(({ id }) => id)).toEqual([1, 4]);
    store.setFilter({ text: "", level: "trace", source: "" });
    expect(store.visible.length).toBe(5);
  });

  it("keeps the newest and says how many it let go", () => {
    const store = new LogStore();
    const all = Array.from({ length: MAX_LINES * 1.2 }, (_, index) => line(index + 1));
    store.add(all);
    expect(store.total).toBe(MAX_LINES);
    expect(store.visible.length).toBe(MAX_LINES);
    expect(store.dropped).toBe(all.length - MAX_LINES);
    expect(store.visible[0]?.id).toBe(store.dropped + 1);
  });
});

describe("colours of a line", () => {
  it("become classes", () => {
    expect(spans("plain")).toEqual([{ text: "plain", classes: "" }]);
    expect(spans("\x1b[1;31mred\x1b[0m and \x1b[38;5;10mgreen\x1b[39m")).toEqual([
      { text: "red", classes: "bold fg-1" },
      { text: " and ", classes: "" },
      { text: "green", classes: "fg-10" },
    ]);
    expect(spans("\x1b[38;2;1;2;3;4mx")).toEqual([{ text: "x", classes: "underline" }]);
  });

  it("what moves a cursor or sets a title is left out", () => {
    expect(spans("a\x1b[2Kb\x1b]0;title\x07c\x1b(Bd\x1b=\x1b[?25he").map(({ text }) => text).join("")).toBe("abcde");
  });

  it("half a sequence at the end does no harm", () => {
    for (const end of ["\x1b", "\x1b[", "\x1b[31", "\x1b]0;x"]) expect(spans(`a${end}`)[0]?.text).toBe("a");
  });
});
