import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { ApiError, type Port, api } from "../api";

const PERIOD = 3_000;

/** The ports that listen in the workspace, as links. */
export function Ports({ agent }: { agent: string }) {
  const ports = useSignal<Port[] | null>(null);
  const trouble = useSignal("");
  useEffect(() => {
    let timer = 0;
    let gone = false;
    const look = async () => {
      if (document.visibilityState === "visible") {
        try {
          ports.value = (await api.ports(agent)).ports;
          trouble.value = "";
        } catch (error) {
          trouble.value = (error as ApiError).message;
        }
      }
      if (!gone) timer = window.setTimeout(look, PERIOD);
    };
    void look();
    return () => {
      gone = true;
      window.clearTimeout(timer);
    };
  }, [agent]);

  const open = async (port: number) => {
    // Opened now: after an await, browsers take it for a pop-up that nobody wanted.
    const page = window.open("", "_blank");
    try {
      const { url } = await api.openPort(agent, port);
      if (page) {
        page.opener = null;
        page.location.href = url;
      } else location.href = url;
    } catch (error) {
      page?.close();
      trouble.value = `Port ${port}: ${(error as ApiError).message}`;
    }
  };
  return (
    <section aria-label="Open ports">
      <h2>Open ports</h2>
      {trouble.value && (
        <p class="bad" role="alert">
          {trouble.value}
        </p>
      )}
      {ports.value?.length === 0 && <p class="empty">Nothing listens.</p>}
      <ul class="ports">
        {ports.value?.map(({ port, process_name }) => (
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
