// Which page is shown: the path is the state, and links are ordinary links.

import { signal } from "@preact/signals";

export const path = signal(location.pathname + location.search);

export function go(to: string, replace = false) {
  if (replace) history.replaceState(null, "", to);
  else history.pushState(null, "", to);
  path.value = location.pathname + location.search;
}

addEventListener("popstate", () => {
  path.value = location.pathname + location.search;
});

document.addEventListener("click", (event) => {
  const link = (event.target as Element).closest?.("a");
  if (!link || link.target || link.origin !== location.origin || link.hasAttribute("download")) return;
  if (event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
  if (link.pathname.startsWith("/api/") || link.pathname === "/login") return;
  event.preventDefault();
  go(link.pathname + link.search);
});
