import type { App } from "../api";
import { safeLink } from "../text";

const TONES = { healthy: "good", initializing: "busy", unhealthy: "bad", disabled: "idle" };

export function Apps({ apps }: { apps: App[] }) {
  const shown = apps.filter((app) => !app.hidden);
  if (!shown.length) return null;
  return (
    <section aria-label="Apps">
      <h2>Apps</h2>
      <ul class="apps">
        {shown.map((app) => {
          const link = app.external ? safeLink(app.url) : undefined;
          const name = app.display_name || app.slug;
          return (
            <li key={app.id}>
              {link ? (
                <a href={link} target="_blank" rel="noreferrer">
                  {name}
                </a>
              ) : (
                name
              )}{" "}
              {app.health !== "disabled" && (
                <span class={`state ${TONES[app.health]}`}>
                  <span class="dot" aria-hidden="true" />
                  {app.health}
                </span>
              )}
            </li>
          );
        })}
      </ul>
    </section>
  );
}
