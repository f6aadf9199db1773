"""Has the NBD servers of a machine started anew: whoever was their client cannot write any more.

fence.py ADDRESS    of the machine that runs nbd-servers.py. Status 0: that is done
"""
import socket, sys

with socket.create_connection((sys.argv[1], 10800), timeout=20) as servers:
    servers.sendall(b'again\n')
    sys.exit(servers.recv(100) != b'ok\n')
