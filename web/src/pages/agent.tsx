import { useSignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import type { Agent, Path, Timing } from "../api";
import { type Live, follow } from "../live";
import { Logs } from "../logs/view";
import { Actions } from "../parts/actions";
import { Apps } from "../parts/apps";
import { Metadata } from "../parts/metadata";
import { Ports } from "../parts/ports";
import { Reach } from "../parts/reach";
import { Scripts } from "../parts/scripts";
import { isOff, State } from "../parts/state";
import { now } from "../parts/time";
import { useTitle } from "../parts/title";
import { Terminals } from "../terminal/tabs";
import { ago } from "../text";

export interface Watched {
  agent: Agent;
  /** The name of its workspace, which people know it by. */
  name: string;
  timings: Timing[];
  path: Path | null;
}

const SECTIONS = ["Overview", "Terminal", "Logs"] as const;

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
  useTitle(name);
  const show = (section: (typeof SECTIONS)[number]) => {
    shown.value = section;
    opened.value ||= section === "Terminal";
  };
  return (
    <main class="agent">
      <div class="heading">
        <h1>{name}</h1>
        <State agent={agent} />
        {path && agent.status === "connected" && <Reach path={path} />}
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
      {agent.status === "connected" && !agent.health.healthy && agent.health.reason && <p class="warning">{agent.health.reason}</p>}
      {opened.value && (
        <div class="pane" hidden={shown.value !== "Terminal"}>
          {agent.status !== "connected" && (
            <p class="warning">
              {isOff(agent)
                ? "The workspace is stopped, and its terminals with it."
                : "The agent is not connected. Shells that are open wait for it; what you type is kept."}
            </p>
          )}
          <Terminals agent={agent.id} reachable={agent.status === "connected"} />
        </div>
      )}
      {shown.value === "Logs" && <Logs agent={agent.id} sources={agent.log_sources} />}
      {shown.value === "Overview" && (
        <div class="overview">
          {agent.status !== "connected" && <Absent agent={agent} />}
          <Apps apps={agent.apps} />
          {agent.status === "connected" && <Ports agent={agent.id} />}
          <Metadata agent={agent.id} />
          <Scripts agent={agent} timings={timings} />
          <Facts agent={agent} />
          <Actions agent={agent} name={name} />
        </div>
      )}
    </main>
  );
}

/** Why there is little to see, and what to do. */
function Absent({ agent }: { agent: Agent }) {
  const seen = agent.last_connected_at ? `It was last seen ${ago(agent.last_connected_at, now.value)}.` : "";
  if (isOff(agent)) return <p class="absent">This workspace is stopped. {seen} “Start as new” makes a new agent for it.</p>;
  return (
    <p class="absent">
      {agent.first_connected_at ? `The agent is not connected. ${seen}` : "The agent has not connected yet."} Start it in
      the workspace with its token; “New token” shows how.
    </p>
  );
}

const CLOUDS = { aws: "AWS", azure: "Azure", google: "Google Cloud" };

/** Which cloud machine the agent is bound to, and how it proved to be that; undefined where it is bound to none. */
function instance({ instance_id, instance_proof }: Agent): string | undefined {
  if (!instance_id) return undefined;
  if (!instance_proof) return `${instance_id} (no proof of it yet)`;
  return `${instance_id} (${CLOUDS[instance_proof.cloud]} vouched for it ${ago(instance_proof.verified_at, now.value)})`;
}

function Facts({ agent }: { agent: Agent }) {
  const facts: [string, string | undefined][] = [
    ["Machine", [agent.operating_system, agent.architecture].filter(Boolean).join(" ")],
    ["Directory", agent.expanded_directory],
    ["Agent", agent.version && `${agent.version} (API ${agent.api_version})`],
    ["Instance", instance(agent)],
    ["Created", ago(agent.created_at, now.value)],
    ["Last seen", agent.status === "connected" ? "now" : ago(agent.last_connected_at, now.value)],
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
