// A text to be copied.

import { useSignal } from "@preact/signals";

export function Copy({ text, label }: { text: string; label: string }) {
  const state = useSignal("Copy");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      state.value = "Copied";
    } catch {
      // Without https there is no clipboard for pages; the text can be marked by hand.
      state.value = "Mark and copy by hand";
    }
    window.setTimeout(() => (state.value = "Copy"), 2_000);
  };
  return (
    <div class="copy">
      <pre tabIndex={0} aria-label={label}>
        {text}
      </pre>
      <button onClick={copy} aria-label={`Copy: ${label}`}>
        {state.value}
      </button>
    </div>
  );
}
