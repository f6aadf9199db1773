"""NBD servers of disks, each with one client at a time, and somebody who starts them anew on request.

nbd-servers.py KIND FOLDER DISK...    KIND: nbdkit or qemu-nbd. The disk FOLDER/DISK has port 10809 and
                                      so on, in the order given

Who connects to port 10800 and sends a line gets the answer "ok" when all servers were killed and started
again: none of the clients that they had can write any more. Prints a line when all serve.
"""
import os, socket, subprocess, sys, time

kind, folder, *disks = sys.argv[1:]
servers = []


def command(disk, port):
    path = os.path.join(folder, disk)
    if kind == 'nbdkit':
        limit = ['--filter=limit', 'file', path, 'limit=1']
        return ['nbdkit', '--foreground', '--exit-with-parent', '--port', str(port), *limit]
    return ['qemu-nbd', '--persistent', '--format=raw', '--discard=unmap', '--port', str(port), path]


def start():
    for number, disk in enumerate(disks):
        servers.append(subprocess.Popen(command(disk, 10809 + number)))
    for number, _ in enumerate(disks):
        until_listens(10809 + number)


def until_listens(port):
    """Without a connection, which the server would count: its client may have to wait for the next."""
    wanted = f':{port:04X} 00000000:0000 0A'
    wanted6 = f':{port:04X} {"0" * 32}:0000 0A'
    while True:
        with open('/proc/net/tcp') as four, open('/proc/net/tcp6') as six:
            if wanted in four.read() or wanted6 in six.read():
                return
        if any(server.poll() is not None for server in servers):
            sys.exit('a server has ended')
        time.sleep(0.01)


def stop():
    for server in servers:
        server.kill()
        server.wait()
    servers.clear()


start()
listener = socket.create_server(('', 10800))
print('ready', flush=True)
while True:
    client, _ = listener.accept()
    with client:
        if client.recv(100):
            stop()
            start()
            client.sendall(b'ok\n')
