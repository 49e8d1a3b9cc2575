// Colours in log lines: SGR sequences to spans. Whatever else a terminal would obey is left out.

export interface Span {
  text: string;
  /** Class names: `bold`, `dim`, `underline`, `fg-0` … `fg-15`. */
  classes: string;
}

const SEQUENCE = /\x1b(?:\[([0-?]*)[ -/]*([@-~]|$)|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[()][0-9A-Za-z]?|.)?/g;

export function spans(line: string): Span[] {
  if (!line.includes("\x1b")) return [{ text: line, classes: "" }];
  const found: Span[] = [];
  let styles = new Set<string>();
  let from = 0;
  const push = (text: string) => {
    if (text) found.push({ text, classes: [...styles].join(" ") });
  };
  for (const match of line.matchAll(SEQUENCE)) {
    push(line.slice(from, match.index));
    from = match.index + match[0].length;
    if (match[2] === "m") styles = styled(styles, match[1] ?? "");
  }
  push(line.slice(from));
  return found;
}

/** The line without its sequences. */
export function plain(line: string): string {
  return line.replace(SEQUENCE, "");
}

function styled(before: Set<string>, parameters: string): Set<string> {
  const styles = new Set(before);
  const colour = (name: string | null) => {
    for (const style of styles) if (style.startsWith("fg-")) styles.delete(style);
    if (name) styles.add(name);
  };
  const codes = parameters.split(/[;:]/).map(Number);
  for (let index = 0; index < codes.length; index++) {
    const code = codes[index] ?? 0;
    if (code === 0) styles.clear();
    else if (code === 1) styles.add("bold");
    else if (code === 2) styles.add("dim");
    else if (code === 4) styles.add("underline");
    else if (code === 22) ["bold", "dim"].forEach((style) => styles.delete(style));
    else if (code === 24) styles.delete("underline");
    else if (code >= 30 && code <= 37) colour(`fg-${code - 30}`);
    else if (code >= 90 && code <= 97) colour(`fg-${code - 82}`);
    else if (code === 39) colour(null);
    else if (code === 38 || code === 48) {
      // Of the 256 colours, the 16 of the theme; the others keep the text's own colour, which is readable on any.
      if (code === 38 && codes[index + 1] === 5 && (codes[index + 2] ?? 99) < 16) colour(`fg-${codes[index + 2]}`);
      index += codes[index + 1] === 5 ? 2 : 4;
    }
  }
  return styles;
}
