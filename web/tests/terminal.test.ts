import { describe, expect, it } from "vitest";
import { keyBytes, withControl } from "../src/terminal/keys";

describe("keys for touch screens", () => {
  it("sends what a keyboard would", () => {
    expect([keyBytes("Esc", false), keyBytes("Tab", true)]).toEqual(["\x1b", "\t"]);
    expect((["↑", "↓", "→", "←"] as const).map((key) => keyBytes(key, false))).toEqual(["\x1b[A", "\x1b[B", "\x1b[C", "\x1b[D"]);
    expect(keyBytes("↑", true)).toBe("\x1bOA");
  });

  it("holds Ctrl for one character", () => {
    expect(["c", "C", "[", "@", " ", "?", "_"].map(withControl)).toEqual(["\x03", "\x03", "\x1b", "\0", "\0", "\x7f", "\x1f"]);
    expect(withControl("dir")).toBe("\x04ir");
    expect(["1", "é", "", "\x1b[A", "😀"].map(withControl)).toEqual(["1", "é", "", "\x1b[A", "😀"]);
  });
});
