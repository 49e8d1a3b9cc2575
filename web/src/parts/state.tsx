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

export function State({ agent }: { agent: Pick<AgentSummary, "status" | "lifecycle_state" | "health"> }) {
  const off = ["off", "shutdown_error", "shutdown_timeout"].includes(agent.lifecycle_state);
  // An agent that was told to stop is not there, and that is as it should be.
  const word = agent.status === "connected" || off ? agent.lifecycle_state : agent.status;
  return (
    <span class={`state ${TONES[word] ?? "idle"}`} title={agent.health.healthy ? undefined : agent.health.reason}>
      <span class="dot" aria-hidden="true" />
      {word.replaceAll("_", " ")}
    </span>
  );
}
