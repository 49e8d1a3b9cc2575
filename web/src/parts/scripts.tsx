import type { Agent, Script, Timing } from "../api";
import { clock, duration } from "../text";

const WORDS: Record<string, string> = {
  ok: "ok",
  exit_failure: "failed",
  timed_out: "timed out",
  pipes_left_open: "ok, output left open",
};

const tone = (status: string) => (status === "ok" ? "good" : status === "pipes_left_open" ? "warn" : "bad");

/** The scripts with their last runs, and the runs of this life on a line of time. */
export function Scripts({ agent, timings }: { agent: Agent; timings: Timing[] }) {
  const { scripts } = agent;
  if (!scripts.length) return null;
  const runs = timings.slice(-200);
  const starts = runs.map((run) => Date.parse(run.started_at));
  const ends = runs.map((run) => Date.parse(run.ended_at));
  const from = Math.min(...starts);
  const span = Math.max(Math.max(...ends) - from, 1);
  return (
    <section aria-label="Scripts">
      <h2>Scripts</h2>
      <table class="scripts">
        <thead>
          <tr>
            <th>Script</th>
            <th>Runs</th>
            <th>Last run</th>
            <th class="wide course">{runs.length > 0 && `${clock(new Date(from).toISOString())} – ${clock(new Date(from + span).toISOString())}`}</th>
          </tr>
        </thead>
        <tbody>
          {scripts.map((script) => {
            const own = runs.filter((run) => run.script_id === script.id);
            const last = own.at(-1);
            return (
              <tr key={script.id}>
                <td>{script.display_name}</td>
                <td>{when(script)}</td>
                <td>
                  {isRunning(script, agent, own) ? (
                    <span class="state busy">
                      <span class="dot" aria-hidden="true" />
                      running
                    </span>
                  ) : last ? (
                    <span class={`state ${tone(last.status)}`} title={`${last.stage}, exit code ${last.exit_code}`}>
                      <span class="dot" aria-hidden="true" />
                      {WORDS[last.status] ?? last.status}
                      {last.exit_code !== 0 && ` (exit code ${last.exit_code})`}, {duration(seconds(last))}
                    </span>
                  ) : (
                    "–"
                  )}
                </td>
                <td class="wide course">
                  <div class="line-of-time">
                    {own.map((run) => (
                      <span
                        key={run.started_at + run.stage}
                        class={`run ${tone(run.status)}`}
                        style={{
                          left: `${((Date.parse(run.started_at) - from) / span) * 100}%`,
                          width: `max(3px, ${((seconds(run) * 1000) / span) * 100}%)`,
                        }}
                        title={`${run.stage}: ${WORDS[run.status] ?? run.status}, ${duration(seconds(run))}`}
                      />
                    ))}
                  </div>
                </td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </section>
  );
}

/** Agents tell of a run when it has ended; that one goes on follows from what the agent as a whole does. */
export function isRunning(script: Script, agent: Pick<Agent, "lifecycle_state" | "status">, own: Timing[]): boolean {
  if (agent.status !== "connected") return false;
  const ended = (stage: string) => own.some((run) => run.stage === stage);
  if (["starting", "start_timeout"].includes(agent.lifecycle_state)) return script.run_on_start && !ended("start");
  if (agent.lifecycle_state === "shutting_down") return script.run_on_stop && !ended("stop");
  return false;
}

const seconds = (run: Timing) => Math.max(0, Date.parse(run.ended_at) - Date.parse(run.started_at)) / 1000;

function when(script: Script): string {
  const found = [script.run_on_start && "start", script.run_on_stop && "stop", script.cron && `cron ${script.cron}`];
  return found.filter(Boolean).join(", ") || "never";
}
