variable "url" {
  description = "Base URL of the control plane."
  type        = string
  validation {
    condition     = can(regex("^https?://[^\\s'\"]+$", var.url))
    error_message = "Write the URL like https://coder.example.com."
  }
}

variable "token" {
  description = "The agent's token."
  type        = string
  sensitive   = true
}

variable "host" {
  description = "Address of the machine, over SSH; null for this one."
  type        = string
  default     = null
}

variable "ssh_user" {
  description = "Who logs in there; needs sudo without a password unless user_unit is set."
  type        = string
  default     = "root"
}

variable "ssh_port" {
  type    = number
  default = 22
}

variable "program" {
  description = "Where the package's program is on the machine."
  type        = string
  default     = "/opt/workspace-agent/bin/workspace-agent"
  validation {
    condition     = can(regex("^/[A-Za-z0-9._/+-]+$", var.program))
    error_message = "Name the program by an absolute path of plain characters."
  }
}

variable "run_as" {
  description = "The workspace's user; without meaning for a user unit."
  type        = string
  default     = "coder"
  validation {
    condition     = can(regex("^[A-Za-z_][A-Za-z0-9_.-]*$", var.run_as))
    error_message = "This is not the name of a user."
  }
}

variable "user_unit" {
  description = "Install in the user's own service manager; needs no root."
  type        = bool
  default     = false
}

variable "wait" {
  description = "What apply waits for: nothing (it returns as soon as the agent is installed), connected or ready."
  type        = string
  default     = "connected"
  validation {
    condition     = contains(["", "connected", "ready"], var.wait)
    error_message = "One of \"\", \"connected\" and \"ready\"."
  }
}

variable "timeout" {
  description = "Seconds to wait for that."
  type        = number
  default     = 120
}
