// The terminals of one agent as tabs. Their ids are kept in the address, so that a reload shows the same shells.

import { type ReadonlySignal, useSignal, useSignalEffect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { go } from "../router";
import { TerminalConnection } from "./connection";
import { type Key, keyBytes, withControl } from "./keys";
import { TouchKeys } from "./touch";
import type { XtermScreen } from "./xterm";

export const MAX_TABS = 12;

interface Tab {
  id: string;
  title: string;
}

function idsInAddress(): string[] {
  const ids = new URLSearchParams(location.search).get("terminals")?.split(",") ?? [];
  return ids.filter((id) => /^[0-9a-f-]{36}$/.test(id)).slice(0, MAX_TABS);
}

function remember(tabs: Tab[]): void {
  const query = new URLSearchParams(location.search);
  if (tabs.length) query.set("terminals", tabs.map((tab) => tab.id).join(","));
  else query.delete("terminals");
  const search = query.toString().replaceAll("%2C", ",");
  go(location.pathname + (search ? `?${search}` : ""), true);
}

const newTab = (number: number): Tab => ({ id: newId(), title: `Terminal ${number}` });

function newId(): string {
  // crypto.randomUUID is missing where the page comes by plain http from another machine.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = ((bytes[6] ?? 0) & 0x0f) | 0x40;
  bytes[8] = ((bytes[8] ?? 0) & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

export function Terminals({ agent, reachable }: { agent: string; reachable: boolean }) {
  const tabs = useSignal<Tab[]>([]);
  const active = useSignal("");

  useEffect(() => {
    const ids = idsInAddress();
    const found = ids.length ? ids.map((id, index) => ({ id, title: `Terminal ${index + 1}` })) : [newTab(1)];
    tabs.value = found;
    active.value = found[0]?.id ?? "";
    remember(found);
  }, [agent]);

  const add = () => {
    if (tabs.value.length >= MAX_TABS) return;
    const tab = newTab(tabs.value.length + 1);
    tabs.value = [...tabs.value, tab];
    active.value = tab.id;
    remember(tabs.value);
  };
  const close = (id: string) => {
    const index = tabs.value.findIndex((tab) => tab.id === id);
    tabs.value = tabs.value.filter((tab) => tab.id !== id);
    if (active.value === id) active.value = tabs.value[Math.max(0, index - 1)]?.id ?? "";
    remember(tabs.value);
  };
  const rename = (id: string, title: string) => {
    tabs.value = tabs.value.map((tab) => (tab.id === id ? { ...tab, title } : tab));
  };

  return (
    <section class="terminals" aria-label="Terminals">
      <div class="tabs" role="group" aria-label="Open terminals">
        {tabs.value.map((tab) => (
          <span class={`tab ${tab.id === active.value ? "active" : ""}`} key={tab.id}>
            <button
              class="name"
              aria-pressed={tab.id === active.value}
              onClick={() => (active.value = tab.id)}
              title={tab.title}
            >
              {tab.title}
            </button>
            <button class="close" aria-label={`Close ${tab.title}`} onClick={() => close(tab.id)}>
              ×
            </button>
          </span>
        ))}
        <button class="add" aria-label="New terminal" title="New terminal" onClick={add}>
          +
        </button>
      </div>
      {tabs.value.map((tab) => (
        <View
          key={tab.id}
          agent={agent}
          id={tab.id}
          active={tab.id === active.value}
          reachable={reachable}
          titled={(title) => rename(tab.id, title)}
        />
      ))}
      {tabs.value.length === 0 && (
        <p class="empty">
          <button onClick={add}>Open a terminal</button>
        </p>
      )}
    </section>
  );
}

interface ViewProps {
  agent: string;
  id: string;
  active: boolean;
  reachable: boolean;
  titled: (title: string) => void;
}

function View({ agent, id, active, reachable, titled }: ViewProps) {
  const holder = useRef<HTMLDivElement>(null);
  const screen = useRef<XtermScreen | null>(null);
  const connection = useSignal<TerminalConnection | null>(null);
  const trouble = useSignal("");
  const searching = useSignal(false);
  // A terminal is opened when it is first looked at: only then it has a size.
  const looked = useSignal(active);
  if (active) looked.value = true;
  const control = useSignal(false);

  const type = (data: string) => {
    const made = connection.value;
    if (!made) return;
    if (made.state.value === "ended") made.restart();
    else if (made.type(control.value ? withControl(data) : data)) trouble.value = "";
    else trouble.value = "Not typed: more is waiting to be sent than can be kept.";
    control.value = false;
  };
  const press = (key: Key) => {
    const terminal = screen.current?.terminal;
    control.value = false;
    if (terminal) type(keyBytes(key, terminal.modes.applicationCursorKeysMode));
    terminal?.focus();
  };

  useEffect(() => {
    if (!looked.value) return;
    let gone = false;
    let watcher: ResizeObserver | undefined;
    import("./xterm").then(
      ({ openXterm }) => {
        const parent = holder.current;
        if (gone || !parent) return;
        const opened = openXterm(parent);
        screen.current = opened;
        const made = new TerminalConnection(agent, id, opened);
        connection.value = made;
        opened.terminal.onData(type);
        opened.terminal.onResize(() => made.resize());
        opened.terminal.onTitleChange((title) => title && titled(title.slice(0, 60)));
        watcher = new ResizeObserver(() => parent.offsetParent && opened.fit());
        watcher.observe(parent);
        if (parent.offsetParent) opened.terminal.focus();
      },
      (error) => (trouble.value = `The terminal cannot be loaded: ${error}`),
    );
    return () => {
      gone = true;
      watcher?.disconnect();
      connection.value?.close();
      screen.current?.dispose();
    };
  }, [agent, id, looked.value]);

  useEffect(() => {
    if (!active || !screen.current) return;
    screen.current.fit();
    screen.current.terminal.focus();
  }, [active]);

  useEffect(() => {
    if (reachable) connection.value?.reconnectNow();
  }, [reachable]);

  return (
    <div class="terminal" hidden={!active}>
      <Status connection={connection} trouble={trouble.value} search={() => (searching.value = !searching.value)} />
      {searching.value && (
        <Search
          find={(text, back) =>
            back ? screen.current?.search.findPrevious(text) : screen.current?.search.findNext(text)
          }
          done={() => {
            searching.value = false;
            screen.current?.search.clearDecorations();
            screen.current?.terminal.focus();
          }}
        />
      )}
      <div class="screen" ref={holder} />
      <TouchKeys press={press} control={control} />
    </div>
  );
}

function Status(props: {
  connection: ReadonlySignal<TerminalConnection | null>;
  trouble: string;
  search: () => void;
}) {
  const shown = useSignal({ state: "connecting", reason: "", rtt: null as number | null, pending: 0 });
  useSignalEffect(() => {
    if (!props.connection.value) return;
    const { state, reason, rtt, pending } = props.connection.value;
    shown.value = { state: state.value, reason: reason.value, rtt: rtt.value, pending: pending.value };
  });
  const { state, reason, rtt, pending } = shown.value;
  const words: Record<string, string> = {
    connecting: "Connecting …",
    open: "Connected",
    waiting: "Reconnecting …",
    ended: "Ended",
  };
  return (
    <div class={`status ${state}`}>
      <span class="dot" aria-hidden="true" />
      <span class="words" role="status">
        <span>{words[state]}</span>
        {reason && (
          <span class="reason" title={reason}>
            {reason}
          </span>
        )}
        {state === "ended" && <span>Press a key for a new shell.</span>}
        {state !== "open" && pending > 0 && <span>What you type is kept and sent later.</span>}
        {props.trouble && <span class="bad">{props.trouble}</span>}
      </span>
      <span class="hint leave">Shift+Esc leaves the terminal</span>
      {rtt !== null && (
        <span class="rtt" title="Round trip to the control plane">
          {rtt < 10 ? rtt.toFixed(1) : Math.round(rtt)} ms
        </span>
      )}
      <button class="quiet" onClick={props.search} title="Search in the terminal">
        Search
      </button>
    </div>
  );
}

function Search({ find, done }: { find: (text: string, back: boolean) => void; done: () => void }) {
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => field.current?.focus(), []);
  return (
    <form
      class="search"
      onSubmit={(event) => {
        event.preventDefault();
        find(field.current?.value ?? "", false);
      }}
      onKeyDown={(event) => {
        if (event.key === "Escape") done();
        if (event.key === "Enter" && event.shiftKey) {
          event.preventDefault();
          find(field.current?.value ?? "", true);
        }
      }}
    >
      <input ref={field} type="search" aria-label="Search in the terminal" placeholder="Search" />
      <button type="button" onClick={() => find(field.current?.value ?? "", true)} aria-label="Previous match">
        ↑
      </button>
      <button aria-label="Next match">↓</button>
      <button type="button" onClick={done} aria-label="Close the search">
        ×
      </button>
    </form>
  );
}
