// Numbers and times for people.

/** `seconds` as "12 s", "3 min", "2 h 5 min", "4 d". */
export function duration(seconds: number): string {
  if (seconds < 0.0995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return `${Math.floor(hours / 24)} d`;
}

export function ago(time: string | undefined, now: number): string {
  if (!time) return "never";
  const seconds = (now - Date.parse(time)) / 1000;
  return seconds < 5 ? "just now" : `${duration(seconds)} ago`;
}

/** "12,345". */
export const count = (number: number) => number.toLocaleString("en");

export function clock(time: string): string {
  return new Date(time).toLocaleTimeString(undefined, { hour12: false });
}

/** A link's target, or nothing where it is not one that a page may lead to: a definition's author writes these. */
export function safeLink(url: string): string | undefined {
  try {
    const { protocol } = new URL(url, location.origin);
    return ["http:", "https:", "vscode:", "jetbrains:", "jetbrains-gateway:"].includes(protocol) ? url : undefined;
  } catch {
    return undefined;
  }
}
