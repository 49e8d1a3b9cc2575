// The control plane's REST API, as far as the page uses it.

export interface Health {
  healthy: boolean;
  reason?: string;
}

export interface Build {
  id: string;
  number: number;
  transition: string;
  status: string;
  error?: string;
  created_at: string;
}

export interface AgentSummary {
  id: string;
  name: string;
  agent_name: string;
  workspace_id: string;
  owner_name: string;
  status: "connecting" | "connected" | "disconnected" | "timeout";
  lifecycle_state: string;
  health: Health;
  build: Build;
  created_at: string;
  last_connected_at?: string;
  version: string;
}

export interface NewAgent extends AgentSummary {
  token: string;
  warnings: string[];
}

export interface Script {
  id: string;
  log_source_id: string;
  display_name: string;
  cron: string;
  run_on_start: boolean;
  run_on_stop: boolean;
  timeout: number;
  exit_code?: number;
  status?: string;
}

export interface App {
  id: string;
  slug: string;
  display_name: string;
  url: string;
  external: boolean;
  health: "disabled" | "initializing" | "healthy" | "unhealthy";
  hidden: boolean;
}

export interface LogSource {
  id: string;
  display_name: string;
}

export interface Agent {
  id: string;
  name: string;
  status: AgentSummary["status"];
  lifecycle_state: string;
  operating_system: string;
  architecture: string;
  version: string;
  api_version: string;
  expanded_directory?: string;
  instance_id?: string;
  /** The last time that a cloud vouched for the instance. */
  instance_proof?: { cloud: "aws" | "azure" | "google"; verified_at: string };
  created_at: string;
  first_connected_at?: string;
  last_connected_at?: string;
  started_at?: string;
  ready_at?: string;
  health: Health;
  apps: App[];
  scripts: Script[];
  log_sources: LogSource[];
  logs_overflowed: boolean;
  latency?: Record<string, { preferred: boolean; latency_ms: number }>;
}

/** One run of a script. */
export interface Timing {
  script_id: string;
  stage: "start" | "stop" | "cron";
  started_at: string;
  ended_at: string;
  exit_code: number;
  status: string;
}

/** How the server reaches the agent. */
export interface Path {
  direct: boolean;
  endpoint: string;
  region: string;
  /** Missing while none was measured. */
  latency_ms?: number;
}

export interface Port {
  port: number;
  network: string;
  process_name: string;
}

export interface MetadataItem {
  result: { collected_at: string; age: number; value: string; error: string };
  description: { display_name: string; key: string; interval: number };
}

export interface LogLine {
  id: number;
  created_at: string;
  output: string;
  level: "trace" | "debug" | "info" | "warn" | "error";
  source_id: string;
}

export interface User {
  id: string;
  username: string;
  email: string;
}

export interface Validation {
  field: string;
  detail: string;
}

/** An answer that is no success, in the server's own words. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly detail: string,
    readonly validations: Validation[],
  ) {
    super(message);
  }
}

async function request<T>(method: string, path: string, body?: string, type = "application/json"): Promise<T> {
  const init: RequestInit = { method, signal: AbortSignal.timeout(30_000) };
  if (body !== undefined) {
    init.body = body;
    init.headers = { "Content-Type": type };
  }
  let answer: Response;
  try {
    answer = await fetch(`/api/v2/${path}`, init);
  } catch (error) {
    throw new ApiError(0, "The control plane does not answer.", String(error), []);
  }
  const text = await answer.text();
  if (!answer.ok) throw refusal(answer, text);
  return (text ? JSON.parse(text) : undefined) as T;
}

function refusal(answer: Response, text: string): ApiError {
  try {
    const { message, detail, validations } = JSON.parse(text);
    return new ApiError(answer.status, message ?? answer.statusText, detail ?? "", validations ?? []);
  } catch {
    return new ApiError(answer.status, answer.statusText || `status ${answer.status}`, text.slice(0, 500), []);
  }
}

const part = encodeURIComponent;

export const api = {
  me: () => request<User>("GET", "users/me"),
  hasUsers: () =>
    request("GET", "users/first").then(
      () => true,
      (error: ApiError) => {
        if (error.status === 404) return false;
        throw error;
      },
    ),
  createFirst: (email: string, username: string, password: string) =>
    request("POST", "users/first", JSON.stringify({ email, username, password })),
  login: (email: string, password: string) => request("POST", "users/login", JSON.stringify({ email, password })),
  logout: () => request("POST", "users/logout"),
  createAgent: (definition: string) => request<NewAgent>("POST", "agents", definition, "application/yaml"),
  deleteAgent: (id: string) => request("DELETE", `agents/${part(id)}`),
  newToken: (id: string) => request<{ token: string }>("POST", `agents/${part(id)}/token`),
  start: (id: string) => request<NewAgent>("POST", `agents/${part(id)}/builds`, '{"transition":"start"}'),
  stop: (id: string) => request("POST", `agents/${part(id)}/builds`, '{"transition":"stop"}'),
  openPort: (id: string, port: number) =>
    request<{ url: string }>("POST", `agents/${part(id)}/ports/${port}/tickets`),
};
