import { signal, useSignal } from "@preact/signals";
import { render } from "preact";
import { useEffect } from "preact/hooks";
import { type ApiError, type User, api } from "./api";
import { AgentPage } from "./pages/agent";
import { Agents } from "./pages/agents";
import { Create } from "./pages/create";
import { Login } from "./pages/login";
import { go, path } from "./router";
import "./style.css";

const user = signal<User | null>(null);

type Phase = "asking" | "first" | "login" | "in" | "away";

function Page() {
  const phase = useSignal<Phase>("asking");
  const trouble = useSignal("");

  const ask = async () => {
    try {
      user.value = await api.me();
      phase.value = "in";
    } catch (error) {
      if ((error as ApiError).status !== 401) {
        phase.value = "away";
        window.setTimeout(ask, 2_000);
        return;
      }
      phase.value = (await api.hasUsers().catch(() => true)) ? "login" : "first";
    }
  };
  useEffect(() => void ask(), []);

  const logout = async () => {
    try {
      await api.logout();
    } catch (error) {
      // A session that goes on while its person thinks it ended is worse than a page that says so.
      if ((error as ApiError).status !== 401) {
        trouble.value = `Not logged out: ${(error as ApiError).message}`;
        return;
      }
    }
    trouble.value = "";
    user.value = null;
    phase.value = "login";
    go("/");
  };
  const loggedOut = () => (phase.value = "login");

  return (
    <>
      <header>
        <a class="brand" href="/">
          <svg viewBox="0 0 32 32" aria-hidden="true">
            <rect width="32" height="32" rx="7" />
            <path d="M8 10l6 6-6 6M16 23h8" />
          </svg>
          workspace-agent
        </a>
        <span class="grow" />
        {phase.value === "in" && user.value && (
          <>
            <span class="wide">{user.value.username}</span>
            <button class="quiet" onClick={logout}>
              Log out
            </button>
          </>
        )}
      </header>
      {trouble.value && (
        <p class="trouble bar-wide" role="alert">
          {trouble.value}
        </p>
      )}
      {phase.value === "asking" && <main />}
      {phase.value === "away" && (
        <main class="narrow">
          <p class="warning">The control plane does not answer. This page tries again by itself.</p>
        </main>
      )}
      {(phase.value === "login" || phase.value === "first") && <Login first={phase.value === "first"} done={ask} />}
      {phase.value === "in" && <Routed loggedOut={loggedOut} />}
    </>
  );
}

function Routed({ loggedOut }: { loggedOut: () => void }) {
  const name = path.value.replace(/\?.*$/, "");
  const agent = /^\/agents\/([^/]+)\/?$/.exec(name)?.[1];
  if (agent) return <AgentPage key={agent} id={decodeURIComponent(agent)} loggedOut={loggedOut} />;
  if (name === "/new") return <Create />;
  if (name === "/" || name === "/login") return <Agents loggedOut={loggedOut} />;
  return (
    <main class="narrow">
      <h1>Not here</h1>
      <p>
        There is no such page. <a href="/">Go to the agents</a>.
      </p>
    </main>
  );
}

const root = document.getElementById("page");
if (root) render(<Page />, root);
