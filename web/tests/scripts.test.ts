import { describe, expect, it } from "vitest";
import type { Script, Timing } from "../src/api";
import { isRunning } from "../src/parts/scripts";

const script = { run_on_start: true, run_on_stop: false } as Script;
const run = (stage: string) => ({ stage }) as Timing;
const agent = (lifecycle_state: string, status: "connected" | "disconnected" = "connected") => ({ lifecycle_state, status });

describe("a script", () => {
  it("runs while the agent starts, until its run is told", () => {
    expect(isRunning(script, agent("starting"), [])).toBe(true);
    expect(isRunning(script, agent("start_timeout"), [run("cron")])).toBe(true);
    expect(isRunning(script, agent("starting"), [run("start")])).toBe(false);
    expect(isRunning(script, agent("ready"), [])).toBe(false);
    expect(isRunning(script, agent("starting", "disconnected"), [])).toBe(false);
  });

  it("runs while the agent stops if it is one for that", () => {
    expect(isRunning(script, agent("shutting_down"), [])).toBe(false);
    const last = { ...script, run_on_stop: true };
    expect(isRunning(last, agent("shutting_down"), [run("start")])).toBe(true);
    expect(isRunning(last, agent("shutting_down"), [run("stop")])).toBe(false);
  });
});
