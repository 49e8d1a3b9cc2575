"""What git in a workspace calls: ssh with the owner's key, and answers to its questions for a login (daemon.md §6)."""
