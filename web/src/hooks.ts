import { createContext } from "preact";
import { useContext, useEffect, useRef, useState } from "preact/hooks";
import { ApiError, get, type Overview } from "./api";

export interface Live {
  overview: Overview | null;
  connected: boolean;
  /** Counts the events of the stream: views that are not streamed ask again when it moves. */
  tick: number;
  range: number;
  theme: string;
}

export const LiveContext = createContext<Live>({ overview: null, connected: false, tick: 0, range: 900, theme: "" });
export const useLive = (): Live => useContext(LiveContext);

export interface Loading<T> {
  data: T | null;
  error: ApiError | Error | null;
}

/** Data of a view; asked again at each `again`, keeping what is shown until the answer is there. */
export function useData<T>(path: string | null, again = 0): Loading<T> {
  const [state, set] = useState<Loading<T> & { path: string | null }>({ data: null, error: null, path: null });
  const busy = useRef<{ path: string; controller: AbortController } | null>(null);
  useEffect(() => {
    if (path === null || document.hidden) return;
    if (busy.current?.path === path) return; // the answer to the last question is still under way
    busy.current?.controller.abort();
    const controller = new AbortController();
    busy.current = { path, controller };
    get<T>(path, controller.signal).then(
      (data) => {
        busy.current = null;
        set({ data, error: null, path });
      },
      (error: Error) => {
        if (controller.signal.aborted) return;
        busy.current = null;
        set((old) => ({ data: old.path === path ? old.data : null, error, path }));
      },
    );
  }, [path, again]);
  useEffect(() => () => busy.current?.controller.abort(), []);
  const same = path?.split("?")[0] === state.path?.split("?")[0];
  return same ? state : { data: null, error: null };
}

export function useWidth<T extends HTMLElement>(): [{ current: T | null }, number] {
  const ref = useRef<T>(null);
  const [width, set] = useState(0);
  useEffect(() => {
    const element = ref.current;
    if (!element) return;
    const observer = new ResizeObserver((entries) => {
      const found = entries[0]?.contentRect.width;
      if (found) set(Math.floor(found));
    });
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  return [ref, width];
}

export function useTitle(text: string): void {
  useEffect(() => {
    document.title = text ? `${text} · onlooker` : "onlooker";
  }, [text]);
}
