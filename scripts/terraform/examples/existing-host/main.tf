# An agent on a machine that exists: over SSH, or with host = null on the one that runs Terraform.

variable "url" { type = string }
variable "token" {
  type      = string
  sensitive = true
}
variable "host" {
  type    = string
  default = null
}
variable "program" {
  type    = string
  default = "/opt/workspace-agent/bin/workspace-agent"
}
variable "run_as" {
  type    = string
  default = "coder"
}

module "agent" {
  source  = "../../module"
  url     = var.url
  token   = var.token
  host    = var.host
  program = var.program
  run_as  = var.run_as
  wait    = "ready"
}
