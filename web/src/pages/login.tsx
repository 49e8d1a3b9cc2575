import { useSignal } from "@preact/signals";
import { ApiError, api } from "../api";
import { useTitle } from "../parts/title";

/** Log in, or, on a server without users, make the first one. */
export function Login({ first, done }: { first: boolean; done: () => void }) {
  const trouble = useSignal<ApiError | null>(null);
  const busy = useSignal(false);
  useTitle(first ? "The first owner" : "Log in");
  const submit = async (event: SubmitEvent) => {
    event.preventDefault();
    const fields = new FormData(event.currentTarget as HTMLFormElement);
    const [email, username, password] = ["email", "username", "password"].map((name) => String(fields.get(name) ?? ""));
    busy.value = true;
    trouble.value = null;
    try {
      if (first) await api.createFirst(email!, username!, password!);
      await api.login(email!, password!);
      done();
    } catch (error) {
      trouble.value = error as ApiError;
    } finally {
      busy.value = false;
    }
  };
  return (
    <main class="narrow">
      <h1>{first ? "The first owner" : "Log in"}</h1>
      {first && <p>This control plane has no users yet. Who is made here owns it.</p>}
      <form onSubmit={submit}>
        <label>
          E-mail
          <input name="email" type="text" autocomplete="username" required autofocus />
        </label>
        {first && (
          <label>
            User name
            <input name="username" autocomplete="nickname" required />
          </label>
        )}
        <label>
          Password
          <input
            name="password"
            type="password"
            autocomplete={first ? "new-password" : "current-password"}
            required
          />
        </label>
        <button class="primary" disabled={busy.value}>
          {first ? "Create" : "Log in"}
        </button>
        {trouble.value && <Trouble error={trouble.value} />}
      </form>
      {!first && (
        <p class="hint">
          No password? <code>workspace-agent server --print-login</code> prints a link for the owner when the server
          starts. It works once.
        </p>
      )}
    </main>
  );
}

export function Trouble({ error }: { error: ApiError }) {
  return (
    <div class="trouble" role="alert">
      <strong>{error.message}</strong> {error.detail}
      {error.validations.length > 0 && (
        <ul>
          {error.validations.map(({ field, detail }) => (
            <li key={field + detail}>
              <code>{field}</code>: {detail}
            </li>
          ))}
        </ul>
      )}
    </div>
  );
}
