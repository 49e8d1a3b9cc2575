import { useSignal } from "@preact/signals";
import { useRef } from "preact/hooks";
import { ApiError, type NewAgent, api } from "../api";
import { Launch } from "../parts/launch";
import { Trouble } from "./login";

const EXAMPLE = `# What an agent is to do. Only the name is needed.
name: my-workspace
directory: ~
scripts:
  - display_name: Hello
    run_on_start: true
    script: |
      echo "This workspace is $(uname -n)"
metadata:
  - display_name: Load
    key: load
    script: cut -d ' ' -f 1 /proc/loadavg
    interval: 5
`;

/** The line that a mistake names, from 1; 0 for none. */
export function mistakenLine(detail: string): number {
  return Number(/^line (\d+):/.exec(detail)?.[1] ?? 0);
}

export function Create() {
  const text = useSignal(EXAMPLE);
  const trouble = useSignal<ApiError | null>(null);
  const made = useSignal<NewAgent | null>(null);
  const busy = useSignal(false);
  const gutter = useRef<HTMLDivElement>(null);

  const submit = async (event: SubmitEvent) => {
    event.preventDefault();
    busy.value = true;
    trouble.value = null;
    try {
      made.value = await api.createAgent(text.value);
    } catch (error) {
      trouble.value = error as ApiError;
    } finally {
      busy.value = false;
    }
  };

  if (made.value) {
    return (
      <main>
        <h1>{made.value.name} is there</h1>
        {made.value.warnings.map((warning) => (
          <p class="warning" key={warning}>
            {warning}
          </p>
        ))}
        <Launch token={made.value.token} />
        <p>
          <a class="button primary" href={`/agents/${made.value.id}`}>
            Go to the agent
          </a>
        </p>
      </main>
    );
  }
  const mistakes = new Map<number, string[]>();
  for (const { detail } of trouble.value?.validations ?? []) {
    const line = mistakenLine(detail);
    mistakes.set(line, [...(mistakes.get(line) ?? []), detail.replace(/^line \d+: /, "")]);
  }
  const lines = text.value.split("\n");
  return (
    <main>
      <h1>New agent</h1>
      <form onSubmit={submit}>
        <div class="editor">
          <div class="gutter" ref={gutter} aria-hidden="true">
            {lines.map((_, index) => (
              <div key={index} class={mistakes.has(index + 1) ? "mistake" : ""} title={mistakes.get(index + 1)?.join("\n")}>
                {index + 1}
              </div>
            ))}
          </div>
          <textarea
            aria-label="Definition of the agent, YAML or JSON"
            spellcheck={false}
            wrap="off"
            rows={Math.min(Math.max(lines.length, 16), 40)}
            value={text.value}
            onInput={(event) => (text.value = event.currentTarget.value)}
            onScroll={(event) => gutter.current && (gutter.current.scrollTop = event.currentTarget.scrollTop)}
          />
        </div>
        <button class="primary" disabled={busy.value}>
          Create
        </button>
        {trouble.value && <Trouble error={trouble.value} />}
      </form>
    </main>
  );
}
