import { useSignal } from "@preact/signals";
import { type Agent, type ApiError, api } from "../api";
import { Trouble } from "../pages/login";
import { go } from "../router";
import { Confirm, type Question } from "./confirm";
import { Launch } from "./launch";
import { isOff } from "./state";

/** What can be done to an agent as a whole. */
export function Actions({ agent, name }: { agent: Agent; name: string }) {
  const token = useSignal("");
  const trouble = useSignal<ApiError | null>(null);
  const notice = useSignal("");
  const question = useSignal<Question | null>(null);
  const attempt = async (action: () => Promise<unknown>) => {
    trouble.value = null;
    notice.value = "";
    try {
      await action();
    } catch (error) {
      trouble.value = error as ApiError;
    }
  };
  const renew = () => attempt(async () => (token.value = (await api.newToken(agent.id)).token));
  const start = () =>
    attempt(async () => {
      const made = await api.start(agent.id);
      go(`/agents/${made.id}`, true);
      started.set(made.id, made.token);
    });
  const stop = () =>
    attempt(async () => {
      await api.stop(agent.id);
      notice.value = "Waiting for the agent to end: stop it in its workspace now.";
    });
  const remove = () =>
    attempt(async () => {
      await api.deleteAgent(agent.id);
      go("/");
    });
  const ask = (asked: Question) => () => (question.value = asked);

  const given = token.value || started.get(agent.id) || "";
  return (
    <section aria-label="Actions">
      <h2>Actions</h2>
      <div class="actions">
        <button
          onClick={ask({
            title: "Make a new token?",
            text: "The token of now is refused from then on; a connected agent stays until it connects again.",
            yes: "Make a new token",
            action: renew,
          })}
        >
          New token …
        </button>
        {!isOff(agent) && (
          <button
            onClick={ask({
              title: `Stop ${name}?`,
              text:
                "The control plane cannot end the agent: do that where it runs, by Ctrl-C or systemctl stop. " +
                "It then runs its stop scripts, terminals end, and from then on it is refused.",
              yes: "Stop",
              action: stop,
            })}
          >
            Stop …
          </button>
        )}
        <button
          onClick={ask({
            title: `Start ${name} as new?`,
            text: "The workspace gets a new agent, with a new token and an empty log. The one of now is refused from then on.",
            yes: "Start as new",
            action: start,
          })}
        >
          Start as new …
        </button>
        <button
          class="danger"
          onClick={ask({
            title: `Delete ${name}?`,
            text: "The workspace is removed from this control plane with its agent and its logs. This cannot be undone.",
            yes: "Delete",
            danger: true,
            action: remove,
          })}
        >
          Delete …
        </button>
      </div>
      {notice.value && !isOff(agent) && (
        <p class="warning" role="status">
          {notice.value}
        </p>
      )}
      {trouble.value && <Trouble error={trouble.value} />}
      {given && <Launch token={given} />}
      {question.value && <Confirm question={question.value} done={() => (question.value = null)} />}
    </section>
  );
}

/** Tokens of agents that were made by this page: their own page, which opens then, shows them. */
const started = new Map<string, string>();
