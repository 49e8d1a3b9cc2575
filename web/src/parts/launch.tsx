// How an agent is started, with its token, which is shown this once.

import { useSignal } from "@preact/signals";
import { Copy } from "./copy";

/** Ways to launch, by name. The token stands in a file or an environment, never among a command's arguments. */
export function launchCommands(url: string, token: string): Record<string, string> {
  return {
    Shell: `export CODER_AGENT_URL='${url}'
export CODER_AGENT_TOKEN='${token}'
workspace-agent agent`,
    systemd: `sudo install -d -m 0700 /etc/workspace-agent
sudo tee /etc/workspace-agent/token >/dev/null <<'EOF'
${token}
EOF
sudo chmod 0600 /etc/workspace-agent/token
sudo systemd-run --unit=workspace-agent --property=Restart=always \\
  --property=LoadCredential=agent-token:/etc/workspace-agent/token \\
  --setenv=CODER_AGENT_URL='${url}' "$(command -v workspace-agent)" agent`,
    Docker: `cat > agent.env <<'EOF'
CODER_AGENT_URL=${url}
CODER_AGENT_TOKEN=${token}
EOF
chmod 600 agent.env
docker run --detach --init --restart unless-stopped --env-file agent.env workspace-agent agent`,
    Terraform: `variable "agent_token" {
  type      = string
  sensitive = true # export TF_VAR_agent_token='${token}'
}

resource "docker_container" "workspace" {
  name    = "workspace"
  image   = "workspace-agent"
  command = ["agent"]
  env     = ["CODER_AGENT_URL=${url}", "CODER_AGENT_TOKEN=\${var.agent_token}"]
}`,
  };
}

export function Launch({ token }: { token: string }) {
  const commands = launchCommands(location.origin, token);
  const chosen = useSignal("Shell");
  return (
    <section class="launch" aria-label="Launch">
      <p>Start it where the workspace is. The token is shown this once; a new one can be made at any time.</p>
      <div class="tabs" role="tablist">
        {Object.keys(commands).map((name) => (
          <span class={`tab ${name === chosen.value ? "active" : ""}`} role="presentation" key={name}>
            <button role="tab" aria-selected={name === chosen.value} onClick={() => (chosen.value = name)}>
              {name}
            </button>
          </span>
        ))}
      </div>
      <Copy text={commands[chosen.value] ?? ""} label={`Launch by ${chosen.value}`} />
    </section>
  );
}
