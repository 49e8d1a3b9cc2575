// The state of an agent at a glance: a colour, and always the word for it.

import type { AgentSummary } from "../api";

const TONES: Record<string, string> = {
  ready: "good",
  off: "idle",
  created: "busy",
  starting: "busy",
  shutting_down: "busy",
  start_timeout: "warn",
  shutdown_timeout: "warn",
  start_error: "bad",
  shutdown_error: "bad",
  connecting: "busy",
  timeout: "bad",
  disconnected: "bad",
};

type Shown = Pick<AgentSummary, "status" | "lifecycle_state" | "health">;

/** Whether it was told to stop: then it is not there, and that is as it should be. */
export function isOff(agent: Pick<Shown, "lifecycle_state">): boolean {
  return ["off", "shutdown_error", "shutdown_timeout"].includes(agent.lifecycle_state);
}

export function State({ agent }: { agent: Shown }) {
  const word = agent.status === "connected" || isOff(agent) ? agent.lifecycle_state : agent.status;
  return (
    <span class={`state ${TONES[word] ?? "idle"}`} title={agent.health.healthy ? undefined : agent.health.reason}>
      <span class="dot" aria-hidden="true" />
      {word.replaceAll("_", " ")}
    </span>
  );
}
