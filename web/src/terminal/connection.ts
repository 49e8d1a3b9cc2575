// One terminal's connection, which comes back by itself (terminal-ssh-http.md §1.10).
//
// With `acknowledge=1` the server speaks text messages besides the terminal's bytes: it says how much of the input the
// agent has (`taken`) and answers pings; we say how much of the output was drawn (`drawn`), and it never sends far ahead
// of that. Hence neither a flood of output nor a slow line keeps Ctrl-C waiting.

import { signal } from "@preact/signals";
import { InputQueue } from "./input";

export type State = "connecting" | "open" | "waiting" | "ended";

export interface Screen {
  /** Draw bytes; `done` when they are on the screen. */
  write(data: Uint8Array, done: () => void): void;
  size(): { height: number; width: number };
  /** What follows is the whole screen anew. */
  reset(): void;
}

const FIRST_PAUSE = 250;
const MAX_PAUSE = 10_000;
const PING = 5_000;
/** Milliseconds without any answer after which a connection counts as dead. */
const DEAD = 15_000;
const REPORT = 2 * 1024;

const encoder = new TextEncoder();

export class TerminalConnection {
  readonly state = signal<State>("connecting");
  /** Why it is not open, for people. */
  readonly reason = signal("");
  /** Milliseconds from here to the server and back. */
  readonly rtt = signal<number | null>(null);
  /** Bytes typed that the agent has not taken. */
  readonly pending = signal(0);

  private readonly input = new InputQueue();
  private socket: WebSocket | null = null;
  private pause = FIRST_PAUSE;
  private retry = 0;
  private pinging = 0;
  private heard = 0;
  private arrived = 0;
  private drawn = 0;
  private reported = 0;
  private closed = false;
  private readonly wake = () => {
    if (document.visibilityState === "visible") this.reconnectNow();
  };

  constructor(
    private readonly agent: string,
    readonly id: string,
    private readonly screen: Screen,
    private readonly command = "",
  ) {
    document.addEventListener("visibilitychange", this.wake);
    addEventListener("online", this.wake);
    this.open();
  }

  /** False when it cannot be kept: too much waits already. */
  type(data: string): boolean {
    const kept = this.input.type(data);
    this.flush();
    return kept;
  }

  resize(): void {
    if (this.socket?.readyState === WebSocket.OPEN) this.sendSize(this.socket);
  }

  reconnectNow(): void {
    if (this.state.value !== "waiting") return;
    this.pause = FIRST_PAUSE;
    window.clearTimeout(this.retry);
    this.open();
  }

  /** Leave the terminal; it lives on for some minutes. */
  close(): void {
    this.closed = true;
    document.removeEventListener("visibilitychange", this.wake);
    removeEventListener("online", this.wake);
    window.clearTimeout(this.retry);
    window.clearInterval(this.pinging);
    this.socket?.close(1000);
    this.state.value = "ended";
  }

  private open(): void {
    this.state.value = "connecting";
    const { height, width } = this.screen.size();
    const url = new URL(`/api/v2/workspaceagents/${this.agent}/pty`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    url.search = new URLSearchParams({
      reconnect: this.id,
      height: String(height),
      width: String(width),
      ...(this.command && { command: this.command }),
      acknowledge: "1",
    }).toString();
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.arrived = this.drawn = this.reported = 0;
    this.heard = performance.now();
    window.clearInterval(this.pinging);
    this.pinging = window.setInterval(() => this.ping(socket), PING);
    socket.onopen = () => {
      this.heard = performance.now();
      this.input.restart();
      // What comes now is what the terminal shows, from its beginning.
      this.screen.reset();
      this.sendSize(socket);
      this.state.value = "open";
      this.reason.value = "";
      this.ping(socket);
      this.flush();
    };
    socket.onmessage = (event: MessageEvent<ArrayBuffer | string>) => this.take(socket, event.data);
    socket.onclose = (event) => this.lost(socket, event);
  }

  private take(socket: WebSocket, data: ArrayBuffer | string): void {
    if (socket !== this.socket) return;
    this.heard = performance.now();
    this.pause = FIRST_PAUSE;
    if (typeof data === "string") {
      const said = JSON.parse(data) as { taken?: number; pong?: number };
      if (said.taken !== undefined) this.input.took(said.taken);
      if (said.pong !== undefined) this.rtt.value = performance.now() - said.pong;
      this.flush();
      return;
    }
    const bytes = new Uint8Array(data);
    this.arrived += bytes.length;
    this.screen.write(bytes, () => {
      if (socket !== this.socket) return;
      this.drawn += bytes.length;
      if (this.drawn - this.reported >= REPORT || this.drawn === this.arrived) {
        this.reported = this.drawn;
        this.say(socket, { drawn: this.drawn });
      }
    });
  }

  private lost(socket: WebSocket, event: CloseEvent): void {
    if (socket !== this.socket || this.closed) return;
    this.socket = null;
    window.clearInterval(this.pinging);
    this.rtt.value = null;
    if (event.code === 1000) {
      // The shell has ended; the same id gives a new one when somebody wants it.
      this.state.value = "ended";
      this.reason.value = "The shell has ended.";
      return;
    }
    this.state.value = "waiting";
    this.reason.value = event.reason || "The connection broke.";
    this.retry = window.setTimeout(() => this.open(), this.pause * (0.5 + Math.random() / 2));
    this.pause = Math.min(this.pause * 2, MAX_PAUSE);
  }

  /** Begin again after the shell has ended. */
  restart(): void {
    if (this.state.value === "ended" && !this.closed) this.open();
  }

  private flush(): void {
    if (this.socket?.readyState === WebSocket.OPEN) for (const bytes of this.input.next()) this.socket.send(bytes);
    this.pending.value = this.input.bytes;
  }

  private sendSize(socket: WebSocket): void {
    const bytes = encoder.encode(JSON.stringify(this.screen.size()));
    this.input.sentAside(bytes.length);
    socket.send(bytes);
  }

  private ping(socket: WebSocket): void {
    if (performance.now() - this.heard > DEAD) {
      // Closing would wait for an answer which does not come.
      socket.onclose = null;
      socket.close();
      this.lost(socket, new CloseEvent("close", { code: 1006, reason: "Nothing was heard from the server." }));
      return;
    }
    this.say(socket, { ping: performance.now() });
  }

  private say(socket: WebSocket, message: object): void {
    if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
  }
}
