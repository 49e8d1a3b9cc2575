import { useSignal } from "@preact/signals";
import { useRef } from "preact/hooks";
import { ApiError, type NewAgent, type Validation, api } from "../api";
import { Launch } from "../parts/launch";
import { useTitle } from "../parts/title";

const EXAMPLE = `# What an agent is to do. Only the name is needed.
name: my-workspace
directory: "~"
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

interface Mistake {
  /** From 1; 0 where none is known. */
  line: number;
  field: string;
  text: string;
}

export function mistake({ field, detail }: Validation): Mistake {
  const found = /^line (\d+): ([^]*)$/.exec(detail);
  return { line: Number(found?.[1] ?? 0), field, text: found?.[2] ?? detail };
}

/** Where the line `number`, from 1, begins and ends in `text`. */
export function lineRange(text: string, number: number): [number, number] {
  const lines = text.split("\n");
  const start = lines.slice(0, number - 1).reduce((sum, line) => sum + line.length + 1, 0);
  return [Math.min(start, text.length), Math.min(start + (lines[number - 1]?.length ?? 0), text.length)];
}

export function Create() {
  const text = useSignal(EXAMPLE);
  const trouble = useSignal<ApiError | null>(null);
  const made = useSignal<NewAgent | null>(null);
  const refused = useSignal("");
  const busy = useSignal(false);
  const editor = useRef<HTMLTextAreaElement>(null);
  useTitle("New agent");

  const show = (line: number) => {
    if (!editor.current) return;
    editor.current.focus();
    editor.current.setSelectionRange(...lineRange(text.value, line));
  };
  const submit = async (event: SubmitEvent) => {
    event.preventDefault();
    busy.value = true;
    trouble.value = null;
    try {
      made.value = await api.createAgent(text.value);
    } catch (error) {
      trouble.value = error as ApiError;
      refused.value = text.value;
      const lines = trouble.value.validations.map((one) => mistake(one).line).filter(Boolean);
      if (lines.length) show(Math.min(...lines));
    } finally {
      busy.value = false;
    }
  };

  if (made.value) return <Made agent={made.value} />;
  const mistakes = (trouble.value?.validations ?? []).map(mistake);
  return (
    <main>
      <h1>New agent</h1>
      <form onSubmit={submit}>
        <Editor text={text} editor={editor} mistakes={mistakes} refused={refused.value} />
        <div class="actions">
          <button class="primary" disabled={busy.value}>
            Create
          </button>
          <a class="button" href="/">
            Cancel
          </a>
        </div>
        {trouble.value && (
          <div class="trouble" role="alert" id="mistakes">
            <strong>{trouble.value.message}</strong> {trouble.value.detail}
            <ul>
              {mistakes.map(({ line, field, text }) => (
                <li key={`${line} ${field} ${text}`}>
                  {line > 0 && (
                    <>
                      <button type="button" class="link" onClick={() => show(line)}>
                        line {line}
                      </button>
                      {": "}
                    </>
                  )}
                  <code>{field}</code>: {text}
                </li>
              ))}
            </ul>
          </div>
        )}
      </form>
    </main>
  );
}

interface EditorProps {
  text: { value: string };
  editor: { current: HTMLTextAreaElement | null };
  mistakes: Mistake[];
  /** The text that the mistakes are of: a line that is changed is no mistake any more. */
  refused: string;
}

/** A text area as high as its text: lines and their numbers scroll as one. */
function Editor({ text, editor, mistakes, refused }: EditorProps) {
  const lines = text.value.split("\n");
  const before = refused.split("\n");
  const marked = mistakes.filter(({ line }) => line > 0 && lines[line - 1] === before[line - 1]);
  return (
    <div class="editor">
      <div class="gutter" aria-hidden="true">
        {lines.map((_, index) => (
          <div key={index} class={marked.some(({ line }) => line === index + 1) ? "mistake" : ""}>
            {index + 1}
          </div>
        ))}
      </div>
      <div class="code">
        {marked.map(({ line, text }) => (
          <span class="mark" key={`${line} ${text}`} style={{ "--line": line - 1 }} aria-hidden="true">
            <span>{text}</span>
          </span>
        ))}
        <textarea
          ref={editor}
          aria-label="Definition of the agent, YAML or JSON"
          aria-invalid={marked.length > 0}
          aria-describedby={mistakes.length ? "mistakes" : undefined}
          spellcheck={false}
          autocapitalize="off"
          wrap="off"
          rows={Math.max(lines.length + 1, 16)}
          value={text.value}
          onInput={(event) => (text.value = event.currentTarget.value)}
        />
      </div>
    </div>
  );
}

function Made({ agent }: { agent: NewAgent }) {
  return (
    <main>
      <h1>{agent.name} is created</h1>
      {agent.warnings.map((warning) => (
        <p class="warning" key={warning}>
          {warning}
        </p>
      ))}
      <Launch token={agent.token} />
      <p>
        <a class="button primary" href={`/agents/${agent.id}`}>
          Go to the agent
        </a>
      </p>
    </main>
  );
}
