import { useSignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { ApiError, type Port, api } from "../api";
import { follow } from "../live";

interface Listening {
  ports: Port[];
  /** Why the ports are not known. */
  trouble: string;
}

/** The ports that listen in the workspace, as links. */
export function Ports({ agent }: { agent: string }) {
  const live = useMemo(() => follow<Listening>(`agents/${encodeURIComponent(agent)}/ports/watch`), [agent]);
  useEffect(() => () => live.close(), [live]);
  const refusal = useSignal("");
  const listening = live.value.value;
  const trouble = refusal.value || listening?.trouble;

  const open = async (port: number) => {
    // Opened now: after an await, browsers take it for a pop-up that nobody wanted.
    const page = window.open("", "_blank");
    refusal.value = "";
    try {
      const { url } = await api.openPort(agent, port);
      if (page) {
        page.opener = null;
        page.location.href = url;
      } else location.href = url;
    } catch (error) {
      page?.close();
      const { message, detail } = error as ApiError;
      refusal.value = `Port ${port}: ${message} ${detail}`;
    }
  };
  return (
    <section aria-label="Open ports">
      <h2>Open ports</h2>
      {trouble && (
        <p class="bad" role="alert">
          {trouble}
        </p>
      )}
      {listening?.ports.length === 0 && !listening.trouble && <p class="empty">Nothing listens.</p>}
      <ul class="ports">
        {listening?.ports.map(({ port, process_name }) => (
          <li key={port}>
            <button class="link" onClick={() => open(port)} title={`Open port ${port} in a new tab`}>
              {port}
            </button>{" "}
            {process_name || "unknown"}
          </li>
        ))}
      </ul>
    </section>
  );
}
