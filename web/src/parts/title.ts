import { useEffect } from "preact/hooks";

/** The name of the browser's tab while the calling component is shown. */
export function useTitle(title: string): void {
  useEffect(() => {
    document.title = `${title} · workspace-agent`;
  }, [title]);
}
