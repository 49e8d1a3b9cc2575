"""The SSH server of a workspace, an adapter over asyncssh (terminal-ssh-http.md §3).

Importing `agent.ssh.server` imports asyncssh, which takes a while and some memory: do it at the first connection.
"""
