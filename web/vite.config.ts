import { defineConfig } from "vite";

// The result is shipped inside the Python package, which serves it under /assets (hashed names) and as the page itself.
export default defineConfig({
  build: {
    outDir: "../agent/server/web",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 800,
  },
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
});
