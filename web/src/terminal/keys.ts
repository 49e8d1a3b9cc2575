// Keys that a phone's keyboard lacks. No DOM.

export type Key = "Esc" | "Tab" | "↑" | "↓" | "←" | "→";

const ARROWS: Partial<Record<Key, string>> = { "↑": "A", "↓": "B", "→": "C", "←": "D" };

/** What a terminal sends for `key`; `application`: whether the program asked for the other form of the arrows. */
export function keyBytes(key: Key, application: boolean): string {
  if (key === "Esc") return "\x1b";
  if (key === "Tab") return "\t";
  return `\x1b${application ? "O" : "["}${ARROWS[key]}`;
}

/** `data` as if Ctrl had been held for its first character. Characters that Ctrl does not change stay. */
export function withControl(data: string): string {
  const first = data.charAt(0).toUpperCase();
  if (first === "?") return "\x7f" + data.slice(1);
  if (first === " ") return "\0" + data.slice(1);
  const code = first.charCodeAt(0);
  return code >= 0x40 && code <= 0x5f ? String.fromCharCode(code & 0x1f) + data.slice(1) : data;
}
