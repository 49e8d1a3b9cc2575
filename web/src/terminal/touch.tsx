import type { Signal } from "@preact/signals";
import type { Key } from "./keys";

const KEYS: Key[] = ["Esc", "Tab", "←", "↓", "↑", "→"];
const NAMES: Partial<Record<Key, string>> = { "←": "Left", "↓": "Down", "↑": "Up", "→": "Right" };

/** The keys that a touch screen's keyboard lacks. Ctrl holds for the next character. */
export function TouchKeys({ press, control }: { press: (key: Key) => void; control: Signal<boolean> }) {
  return (
    // The terminal must keep the focus, or the screen's keyboard would go away.
    <div class="touch-keys" role="group" aria-label="Keys" onPointerDown={(event) => event.preventDefault()}>
      <button aria-pressed={control.value} onClick={() => (control.value = !control.value)}>
        Ctrl
      </button>
      {KEYS.map((key) => (
        <button key={key} aria-label={NAMES[key]} onClick={() => press(key)}>
          {key}
        </button>
      ))}
    </div>
  );
}
