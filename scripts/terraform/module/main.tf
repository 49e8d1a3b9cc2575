# Installs the agent on a machine that exists, over SSH or on this one. Apply returns when the agent is installed and,
# if asked, connected; destroy removes it, which runs the workspace's stop scripts.

terraform {
  required_version = ">= 1.4" # terraform_data
}

locals {
  # What destroy needs has to be in the resource itself. None of it is a secret.
  settings = {
    url       = var.url
    program   = var.program
    run_as    = var.run_as
    user_unit = var.user_unit
    wait      = var.wait
    timeout   = var.timeout
  }
  # The token's change is a reason to install anew; the state shows its hash only.
  token_hash = nonsensitive(sha256(var.token))
}

resource "terraform_data" "local" {
  count            = var.host == null ? 1 : 0
  input            = local.settings
  triggers_replace = [sha256(jsonencode(local.settings)), local.token_hash]

  provisioner "local-exec" {
    interpreter = ["/bin/sh", "-c"]
    command     = file("${path.module}/install.sh")
    environment = {
      WA_URL       = var.url
      WA_TOKEN     = var.token
      WA_PROGRAM   = var.program
      WA_RUN_AS    = var.run_as
      WA_USER_UNIT = var.user_unit
      WA_WAIT      = var.wait
      WA_TIMEOUT   = var.timeout
    }
  }

  provisioner "local-exec" {
    when        = destroy
    interpreter = ["/bin/sh", "-c"]
    command     = file("${path.module}/uninstall.sh")
    environment = {
      WA_PROGRAM   = self.output.program
      WA_USER_UNIT = self.output.user_unit
    }
  }
}

resource "terraform_data" "remote" {
  count = var.host == null ? 0 : 1
  input = merge(local.settings, { host = var.host, ssh_user = var.ssh_user, ssh_port = var.ssh_port })
  triggers_replace = [
    sha256(jsonencode(local.settings)), local.token_hash, var.host, var.ssh_user, var.ssh_port,
  ]

  connection {
    type  = "ssh"
    host  = self.output.host
    user  = self.output.ssh_user
    port  = self.output.ssh_port
    agent = true # the key comes from ssh-agent, so that it is in no state either
  }

  # The token travels in a file, so that it is on no command line.
  provisioner "file" {
    content     = var.token
    destination = ".workspace-agent.token"
  }

  provisioner "remote-exec" {
    inline = [join("\n", [
      "chmod 600 .workspace-agent.token",
      "export WA_URL='${var.url}' WA_TOKEN_FILE=\"$PWD/.workspace-agent.token\" WA_PROGRAM='${var.program}'",
      "export WA_RUN_AS='${var.run_as}' WA_USER_UNIT='${var.user_unit}' WA_WAIT='${var.wait}' WA_TIMEOUT='${var.timeout}'",
      "trap 'rm -f .workspace-agent.token' EXIT",
      file("${path.module}/install.sh"),
    ])]
  }

  provisioner "remote-exec" {
    when = destroy
    inline = [join("\n", [
      "export WA_PROGRAM='${self.output.program}' WA_USER_UNIT='${self.output.user_unit}'",
      file("${path.module}/uninstall.sh"),
    ])]
  }
}
