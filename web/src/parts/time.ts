// Now, in seconds' steps, for texts such as "3 s ago".

import { signal } from "@preact/signals";

export const now = signal(Date.now());

window.setInterval(() => {
  if (document.visibilityState === "visible") now.value = Date.now();
}, 1_000);
