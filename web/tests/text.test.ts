import { describe, expect, it } from "vitest";
import { numberIn } from "../src/parts/graph";
import { launchCommands } from "../src/parts/launch";
import { lineRange, mistake } from "../src/pages/create";
import { duration, safeLink } from "../src/text";

describe("texts", () => {
  it("says durations as people do", () => {
    expect([0.04, 1.23, 42, 61, 3600, 3900, 200_000].map(duration)).toEqual([
      "40 ms",
      "1.2 s",
      "42 s",
      "1 min",
      "1 h",
      "1 h 5 min",
      "2 d",
    ]);
  });

  it("finds the number of a value", () => {
    expect(["12.5 %", " 3/16 GiB", "-1", "n/a", ""].map(numberIn)).toEqual([12.5, 3, -1, null, null]);
  });

  it("finds the line of a mistake", () => {
    const read = (detail: string) => mistake({ field: "scripts", detail });
    expect(read("line 12: unknown key")).toEqual({ line: 12, field: "scripts", text: "unknown key" });
    expect(read("no line")).toEqual({ line: 0, field: "scripts", text: "no line" });
    expect(read("line x: y").line).toBe(0);
    expect(read("line 3: two\nlines").text).toBe("two\nlines");
  });

  it("knows where a line is", () => {
    const text = "first\n\nthird";
    expect([1, 2, 3, 4].map((line) => text.slice(...lineRange(text, line)))).toEqual(["first", "", "third", ""]);
  });

  it("names the token once in each way to launch, and the server's address", () => {
    for (const text of Object.values(launchCommands("https://x.example", "TOKEN"))) {
      expect(text.split("TOKEN").length).toBe(2 + (text.match(/CODER_AGENT_TOKEN/g) ?? []).length);
      expect(text).toContain("https://x.example");
    }
  });
});

describe("links of a definition", () => {
  it("lead nowhere but to the web and to editors", () => {
    globalThis.location ??= new URL("http://localhost") as unknown as Location;
    expect(safeLink("https://a.example/x")).toBe("https://a.example/x");
    expect(safeLink("vscode://x")).toBe("vscode://x");
    expect(safeLink("javascript:alert(1)")).toBeUndefined();
    expect(safeLink("data:text/html,x")).toBeUndefined();
    expect(safeLink("http://[")).toBeUndefined();
  });
});
