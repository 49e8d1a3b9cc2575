// The log of an agent as it grows: a WebSocket fed by position, so nothing is missed or doubled over reconnects.

import { signal } from "@preact/signals";
import type { LogLine } from "../api";
import { LogStore } from "./store";

const MAX_PAUSE = 5_000;

export class LogFollower {
  readonly store = new LogStore();
  /** Changes whenever the store has. At most once a frame, however fast lines arrive. */
  readonly version = signal(0);
  readonly open = signal(false);

  private socket: WebSocket | null = null;
  private timer = 0;
  private frame = 0;
  private pause = 250;
  private closed = false;

  constructor(private readonly agent: string) {
    this.connect();
  }

  changed(): void {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.version.value += 1;
    });
  }

  close(): void {
    this.closed = true;
    window.clearTimeout(this.timer);
    cancelAnimationFrame(this.frame);
    this.socket?.close();
  }

  private connect(): void {
    const url = new URL(`/api/v2/workspaceagents/${this.agent}/logs`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    url.search = `follow&after=${this.store.lastId}`;
    const socket = new WebSocket(url);
    this.socket = socket;
    socket.onopen = () => (this.open.value = true);
    socket.onmessage = (event: MessageEvent<string>) => {
      this.pause = 250;
      this.store.add(JSON.parse(event.data) as LogLine[]);
      this.changed();
    };
    socket.onclose = (event) => {
      this.open.value = false;
      // 1000: a newer build took over, nothing comes any more.
      if (this.closed || event.code === 1000) return;
      this.timer = window.setTimeout(() => this.connect(), this.pause * (0.5 + Math.random() / 2));
      this.pause = Math.min(this.pause * 2, MAX_PAUSE);
    };
  }
}
