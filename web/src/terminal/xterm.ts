// xterm.js with what belongs to it. Loaded only when a terminal is opened.

import { FitAddon } from "@xterm/addon-fit";
import { SearchAddon } from "@xterm/addon-search";
import { UnicodeGraphemesAddon } from "@xterm/addon-unicode-graphemes";
import { WebLinksAddon } from "@xterm/addon-web-links";
import { WebglAddon } from "@xterm/addon-webgl";
import { type ITheme, Terminal } from "@xterm/xterm";
import "@xterm/xterm/css/xterm.css";
import type { Screen } from "./connection";

const SCROLLBACK = 10_000;

const LIGHT: ITheme = {
  background: "#ffffff",
  foreground: "#1f2328",
  cursor: "#0f766e",
  cursorAccent: "#ffffff",
  selectionBackground: "#b6e3ff",
  black: "#24292f",
  red: "#b3202c",
  green: "#11632f",
  yellow: "#6b4a00",
  blue: "#0850b0",
  magenta: "#7438bf",
  cyan: "#14606b",
  white: "#5c646e",
  brightBlack: "#4f565f",
  brightRed: "#9c111d",
  brightGreen: "#1a6b38",
  brightYellow: "#5a3a00",
  brightBlue: "#1c5fc4",
  brightMagenta: "#8246cf",
  brightCyan: "#1d6f7a",
  brightWhite: "#767e88",
};

const DARK: ITheme = {
  background: "#101418",
  foreground: "#dde3e9",
  cursor: "#2dd4bf",
  cursorAccent: "#101418",
  selectionBackground: "#264f78",
  black: "#3b434c",
  red: "#ff7b72",
  green: "#56d364",
  yellow: "#e3b341",
  blue: "#79b8ff",
  magenta: "#d2a8ff",
  cyan: "#56d4dd",
  white: "#c9d1d9",
  brightBlack: "#8b949e",
  brightRed: "#ffa198",
  brightGreen: "#7ee787",
  brightYellow: "#f2cc60",
  brightBlue: "#a5d6ff",
  brightMagenta: "#e2c5ff",
  brightCyan: "#8ddbe0",
  brightWhite: "#ffffff",
};

export interface XtermScreen extends Screen {
  readonly terminal: Terminal;
  readonly search: SearchAddon;
  fit(): void;
  dispose(): void;
}

/** Opens a terminal in `parent`, which must be visible: its size is that of the parent. */
export function openXterm(parent: HTMLElement): XtermScreen {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const terminal = new Terminal({
    allowProposedApi: true,
    cursorBlink: true,
    fontFamily: getComputedStyle(parent).getPropertyValue("--mono") || "monospace",
    fontSize: 14,
    scrollback: SCROLLBACK,
    theme: dark.matches ? DARK : LIGHT,
    minimumContrastRatio: 4.5,
    macOptionIsMeta: true,
  });
  const fit = new FitAddon();
  const search = new SearchAddon();
  terminal.loadAddon(fit);
  terminal.loadAddon(search);
  terminal.loadAddon(new WebLinksAddon());
  terminal.loadAddon(new UnicodeGraphemesAddon());
  terminal.open(parent);
  accelerate(terminal);
  fit.fit();
  // Applications tell Shift+Enter from Enter by this.
  terminal.attachCustomKeyEventHandler((event) => {
    if (event.key !== "Enter" || !event.shiftKey || event.ctrlKey || event.altKey || event.metaKey) return true;
    if (event.type === "keydown") terminal.input("\x1b\r");
    event.preventDefault();
    return false;
  });
  const recolour = () => {
    terminal.options.theme = dark.matches ? DARK : LIGHT;
  };
  dark.addEventListener("change", recolour);
  return {
    terminal,
    search,
    write: (data, done) => terminal.write(data, done),
    size: () => ({ height: terminal.rows, width: terminal.cols }),
    reset: () => terminal.reset(),
    fit: () => fit.fit(),
    dispose() {
      dark.removeEventListener("change", recolour);
      terminal.dispose();
    },
  };
}

/** Draw by WebGL where the browser can; its context may be taken away at any time, and then the plain renderer goes on. */
function accelerate(terminal: Terminal): void {
  try {
    const webgl = new WebglAddon();
    webgl.onContextLoss(() => webgl.dispose());
    terminal.loadAddon(webgl);
  } catch (error) {
    console.info("terminals are drawn without WebGL:", error);
  }
}
