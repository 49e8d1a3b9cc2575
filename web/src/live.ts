// Things that the server tells by itself: server-sent events as signals that say how fresh they are.

import { type ReadonlySignal, signal } from "@preact/signals";

export interface Live<T> {
  value: ReadonlySignal<T | null>;
  /** Whether the connection is up: what is shown is what is. */
  fresh: ReadonlySignal<boolean>;
  /** Not logged in any more. */
  refused: ReadonlySignal<boolean>;
  /** There is no such thing, or it is another's. */
  missing: ReadonlySignal<boolean>;
  close(): void;
}

const FIRST_PAUSE = 500;
const MAX_PAUSE = 5_000;

/** Follow a stream of `data` events whose value replaces the one before. EventSource itself gives up for good when a
 * proxy answers 502 while the server restarts; hence the own reconnect. */
export function follow<T>(path: string): Live<T> {
  const value = signal<T | null>(null);
  const fresh = signal(false);
  const refused = signal(false);
  const missing = signal(false);
  let source: EventSource | null = null;
  let timer = 0;
  let pause = FIRST_PAUSE;
  let closed = false;

  function open() {
    source = new EventSource(`/api/v2/${path}`);
    source.addEventListener("data", (event) => {
      pause = FIRST_PAUSE;
      value.value = JSON.parse((event as MessageEvent<string>).data) as T;
      fresh.value = true;
    });
    source.onerror = () => {
      fresh.value = false;
      source?.close();
      void check();
    };
  }

  // An EventSource does not tell why it failed.
  async function check() {
    const stop = new AbortController();
    const status = await fetch(`/api/v2/${path}`, { signal: stop.signal }).then(
      (answer) => answer.status,
      () => 0,
    );
    stop.abort();
    if (closed) return;
    refused.value = status === 401;
    missing.value = status === 404 || status === 400;
    if (refused.value) return;
    timer = window.setTimeout(open, pause * (0.5 + Math.random()));
    pause = Math.min(pause * 2, MAX_PAUSE);
  }

  open();
  return {
    value,
    fresh,
    refused,
    missing,
    close() {
      closed = true;
      window.clearTimeout(timer);
      source?.close();
    },
  };
}
