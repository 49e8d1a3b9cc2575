"""A ProxyCommand for OpenSSH: connects to a Unix socket and hands the connection over (`ProxyUseFdpass`)."""

import array
import socket
import sys

with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, socket.socket(fileno=1) as ssh:
    connection.connect(sys.argv[1])
    ssh.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [connection.fileno()]))])
    ssh.detach()
