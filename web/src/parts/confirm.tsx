// A question before something that cannot be taken back.

import { useEffect, useRef } from "preact/hooks";

export interface Question {
  title: string;
  text: string;
  /** What the button says that does it. */
  yes: string;
  danger?: boolean;
  action: () => void;
}

export function Confirm({ question, done }: { question: Question; done: () => void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => dialog.current?.showModal(), []);
  return (
    <dialog ref={dialog} onClose={done} aria-labelledby="question">
      <h2 id="question">{question.title}</h2>
      <p>{question.text}</p>
      <div class="actions">
        <button autofocus onClick={() => dialog.current?.close()}>
          Cancel
        </button>
        <button
          class={question.danger ? "danger" : "primary"}
          onClick={() => {
            dialog.current?.close();
            question.action();
          }}
        >
          {question.yes}
        </button>
      </div>
    </dialog>
  );
}
