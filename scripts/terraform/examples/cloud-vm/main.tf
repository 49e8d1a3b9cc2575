# User data for a virtual machine in AWS, Azure or Google Cloud. The machine proves who it is with its instance identity:
# no token is in the user data, and none in Terraform's state. The output goes into
#   aws_instance.user_data, google_compute_instance.metadata.startup-script,
#   azurerm_linux_virtual_machine.custom_data (with base64encode)

variable "url" {
  type = string
  validation {
    condition     = can(regex("^https?://[^\\s'\"]+$", var.url))
    error_message = "Write the URL like https://coder.example.com."
  }
}
variable "cloud" {
  type = string
  validation {
    condition     = contains(["aws", "azure", "google"], var.cloud)
    error_message = "One of aws, azure and google."
  }
}
variable "package" {
  description = "What pip installs: a name or the URL of a wheel."
  type        = string
  default     = "workspace-agent"
}
variable "user" {
  type    = string
  default = "coder"
}

output "user_data" {
  value = templatefile("${path.module}/user-data.sh.tftpl", {
    url     = var.url
    auth    = "${var.cloud}-instance-identity"
    package = var.package
    user    = var.user
  })
}
