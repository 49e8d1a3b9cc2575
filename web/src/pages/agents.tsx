import { useEffect, useMemo } from "preact/hooks";
import type { AgentSummary } from "../api";
import { follow } from "../live";
import { State } from "../parts/state";
import { now } from "../parts/time";
import { useTitle } from "../parts/title";
import { ago } from "../text";

/** All agents, as they are now. */
export function Agents({ loggedOut }: { loggedOut: () => void }) {
  const live = useMemo(() => follow<{ agents: AgentSummary[] }>("agents/watch"), []);
  useEffect(() => () => live.close(), []);
  useEffect(() => {
    if (live.refused.value) loggedOut();
  }, [live.refused.value]);
  useTitle("Agents");
  const found = live.value.value?.agents;
  return (
    <main>
      <div class="heading">
        <h1>Agents</h1>
        {found && !live.fresh.value && <span class="stale">not up to date: the control plane does not answer</span>}
        <span class="grow" />
        {found?.length !== 0 && (
          <a class="button primary" href="/new">
            New agent
          </a>
        )}
      </div>
      {!found && <p class="empty">{live.fresh.value ? "" : "Loading …"}</p>}
      {found?.length === 0 && (
        <div class="nothing">
          <p>No agents yet. An agent runs in a workspace and brings its terminals, ports and logs here.</p>
          <a class="button primary" href="/new">
            Create the first one
          </a>
        </div>
      )}
      {found && found.length > 0 && (
        <table class="agents">
          <thead>
            <tr>
              <th>Agent</th>
              <th>State</th>
              <th class="wide">Owner</th>
              <th class="wide">Last seen</th>
              <th class="wide">Version</th>
            </tr>
          </thead>
          <tbody>
            {found.map((agent) => (
              <tr key={agent.id}>
                <td>
                  <a href={`/agents/${agent.id}`}>{agent.name}</a>
                  {!agent.health.healthy && <div class="reason">{agent.health.reason}</div>}
                </td>
                <td>
                  <State agent={agent} />
                  {agent.status !== "connected" && (
                    <div class="narrow-only reason">{ago(agent.last_connected_at, now.value)}</div>
                  )}
                </td>
                <td class="wide">{agent.owner_name}</td>
                <td class="wide">{agent.status === "connected" ? "now" : ago(agent.last_connected_at, now.value)}</td>
                <td class="wide">{agent.version || "–"}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </main>
  );
}
