import { useSignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { type Agent, ApiError, type Path, type Timing, api } from "../api";
import { type Live, follow } from "../live";
import { Logs } from "../logs/view";
import { Launch } from "../parts/launch";
import { State } from "../parts/state";
import { Apps } from "../parts/apps";
import { Metadata } from "../parts/metadata";
import { Ports } from "../parts/ports";
import { Scripts } from "../parts/scripts";
import { now } from "../parts/time";
import { go } from "../router";
import { Terminals } from "../terminal/tabs";
import { ago } from "../text";
import { Trouble } from "./login";

export interface Watched {
  agent: Agent;
  /** The name of its workspace, which people know it by. */
  name: string;
  timings: Timing[];
  path: Path | null;
}

const SECTIONS = ["Terminal", "Logs", "Overview"] as const;

export function AgentPage({ id, loggedOut }: { id: string; loggedOut: () => void }) {
  const live = useMemo(() => follow<Watched>(`agents/${encodeURIComponent(id)}/watch`), [id]);
  useEffect(() => () => live.close(), [live]);
  useEffect(() => {
    if (live.refused.value) loggedOut();
  }, [live.refused.value]);
  const watched = live.value.value;
  if (!watched) {
    return (
      <main>
        <p class="empty">{live.missing.value ? "There is no such agent, or it is not yours." : "Loading …"}</p>
      </main>
    );
  }
  return <Shown live={live} watched={watched} />;
}

function Shown({ live, watched }: { live: Live<Watched>; watched: Watched }) {
  const { agent, name, path, timings } = watched;
  const shown = useSignal<(typeof SECTIONS)[number]>(agent.status === "connected" ? "Terminal" : "Overview");
  const opened = useSignal(shown.value === "Terminal");
  useEffect(() => {
    document.title = `${name} · workspace-agent`;
    return () => (document.title = "workspace-agent");
  }, [name]);
  const show = (section: (typeof SECTIONS)[number]) => {
    shown.value = section;
    opened.value ||= section === "Terminal";
  };
  return (
    <main class="agent">
      <div class="heading">
        <h1>{name}</h1>
        <State agent={agent} />
        {path && agent.status === "connected" && (
          <span class="path" title={path.direct ? path.endpoint : `over the relay ${path.region}`}>
            {path.direct ? "direct" : `relayed (${path.region})`}, {path.latency_ms.toFixed(1)} ms
          </span>
        )}
        {!live.fresh.value && <span class="stale">not up to date: the control plane does not answer</span>}
        <span class="grow" />
        <nav class="sections" aria-label="Sections">
          {SECTIONS.map((section) => (
            <button key={section} aria-pressed={section === shown.value} onClick={() => show(section)}>
              {section}
            </button>
          ))}
        </nav>
      </div>
      {!agent.health.healthy && agent.health.reason && <p class="warning">{agent.health.reason}</p>}
      {opened.value && (
        <div class="pane" hidden={shown.value !== "Terminal"}>
          <Terminals agent={agent.id} reachable={agent.status === "connected"} />
        </div>
      )}
      {shown.value === "Logs" && <Logs agent={agent.id} sources={agent.log_sources} />}
      {shown.value === "Overview" && (
        <div class="overview">
          <Scripts scripts={agent.scripts} timings={timings} />
          <Metadata agent={agent.id} />
          <Apps apps={agent.apps} />
          {agent.status === "connected" && <Ports agent={agent.id} />}
          <Facts agent={agent} />
          <Actions agent={agent} />
        </div>
      )}
    </main>
  );
}

function Facts({ agent }: { agent: Agent }) {
  const facts: [string, string | undefined][] = [
    ["Machine", [agent.operating_system, agent.architecture].filter(Boolean).join(" ")],
    ["Directory", agent.expanded_directory],
    ["Agent", agent.version && `${agent.version} (API ${agent.api_version})`],
    ["Created", ago(agent.created_at, now.value)],
    ["Last connected", agent.status === "connected" ? "now" : ago(agent.last_connected_at, now.value)],
    [
      "Relays",
      Object.entries(agent.latency ?? {})
        .map(([name, { latency_ms, preferred }]) => `${name} ${latency_ms.toFixed(1)} ms${preferred ? " (home)" : ""}`)
        .join(", "),
    ],
  ];
  return (
    <section aria-label="Facts">
      <h2>Facts</h2>
      <dl>
        {facts
          .filter(([, value]) => value)
          .map(([name, value]) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd>{value}</dd>
            </div>
          ))}
      </dl>
    </section>
  );
}

function Actions({ agent }: { agent: Agent }) {
  const token = useSignal("");
  const trouble = useSignal<ApiError | null>(null);
  const attempt = async (action: () => Promise<unknown>) => {
    trouble.value = null;
    try {
      await action();
    } catch (error) {
      trouble.value = error as ApiError;
    }
  };
  return (
    <section aria-label="Actions">
      <h2>Actions</h2>
      <div class="actions">
        <button onClick={() => attempt(async () => (token.value = (await api.newToken(agent.id)).token))}>
          New token
        </button>
        <button
          onClick={() =>
            confirm("Run the stop scripts and end the agent?") && attempt(() => api.stop(agent.id))
          }
        >
          Stop
        </button>
        <button
          onClick={() =>
            confirm("Start anew? The agent of now is refused from then on, and a new token is made.") &&
            attempt(async () => {
              const made = await api.start(agent.id);
              token.value = made.token;
              go(`/agents/${made.id}`, true);
            })
          }
        >
          Start anew
        </button>
        <button
          class="danger"
          onClick={() =>
            confirm("Delete this workspace with its agent and logs?") &&
            attempt(async () => {
              await api.deleteAgent(agent.id);
              go("/");
            })
          }
        >
          Delete
        </button>
      </div>
      {trouble.value && <Trouble error={trouble.value} />}
      {token.value && <Launch token={token.value} />}
    </section>
  );
}
