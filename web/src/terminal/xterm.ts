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

/** Keys that mean something else here than they do to a terminal. */
function ownKey(event: KeyboardEvent, terminal: Terminal): (() => void) | null {
  if (!event.shiftKey || event.altKey || event.metaKey) return null;
  // Applications tell Shift+Enter from Enter by this.
  if (event.key === "Enter" && !event.ctrlKey) return () => terminal.input("\x1b\r");
  // The tabulator is the shell's, so without this nobody could leave the terminal by keyboard.
  if (event.key === "Escape" && !event.ctrlKey) return () => leave(terminal);
  if (event.code === "KeyC" && event.ctrlKey && terminal.hasSelection()) return () => document.execCommand("copy");
  return null;
}

function leave(terminal: Terminal): void {
  terminal.blur();
  terminal.element?.closest(".terminal:not(.xterm)")?.querySelector<HTMLElement>("button")?.focus();
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
  terminal.attachCustomKeyEventHandler((event) => {
    const own = ownKey(event, terminal);
    if (!own) return true;
    event.preventDefault();
    if (event.type === "keydown") own();
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

/** Draw by WebGL where there is hardware for it: computed, it is slower than the plain renderer. Its context may be taken
 * away at any time, and then the plain renderer goes on. */
function accelerate(terminal: Terminal): void {
  if (!hasGraphicsHardware()) return;
  try {
    const webgl = new WebglAddon();
    webgl.onContextLoss(() => webgl.dispose());
    terminal.loadAddon(webgl);
  } catch (error) {
    console.info("terminals are drawn without WebGL:", error);
  }
}

function hasGraphicsHardware(): boolean {
  const probe = document.createElement("canvas").getContext("webgl2");
  if (!probe) return false;
  const told = probe.getExtension("WEBGL_debug_renderer_info");
  const name = String(probe.getParameter(told ? told.UNMASKED_RENDERER_WEBGL : probe.RENDERER));
  probe.getExtension("WEBGL_lose_context")?.loseContext();
  return !/swiftshader|llvmpipe|softpipe|software|basic render/i.test(name);
}
