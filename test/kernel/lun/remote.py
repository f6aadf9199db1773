"""Runs programs on another machine.

remote.py serve ADDRESS PORT         there: one program for each connection
remote.py ADDRESS PORT COMMAND...    here: its output, and its status; 255 where the machine is gone
"""
import base64, json, os, socket, subprocess, sys, threading

OUTPUTS = {'out': 1, 'err': 2}


def serve(connection):
    with connection, connection.makefile('rwb') as stream:
        command = json.loads(stream.readline())
        turn = threading.Lock()

        def say(**what):
            with turn:
                stream.write(json.dumps(what).encode() + b'\n')
                stream.flush()

        def pass_on(name, pipe):
            while part := os.read(pipe.fileno(), 65536):
                say(**{name: base64.b64encode(part).decode()})

        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as err:
            say(err=base64.b64encode(f'{command[0]}: {err.strerror}\n'.encode()).decode())
            return say(status=127)
        pipes = [('out', child.stdout), ('err', child.stderr)]
        readers = [threading.Thread(target=pass_on, args=one, daemon=True) for one in pipes]
        for reader in readers:
            reader.start()
        status = child.wait()
        for reader in readers:
            reader.join()
        say(status=status if status >= 0 else 128 - status)


def listen(address, port):
    with socket.create_server((address, int(port)), backlog=64) as server:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


def run(address, port, *command):
    try:
        with socket.create_connection((address, int(port))) as connection:
            stream = connection.makefile('rwb')
            stream.write(json.dumps(command).encode() + b'\n')
            stream.flush()
            for line in stream:
                for what, value in json.loads(line).items():
                    if what == 'status':
                        return value
                    os.write(OUTPUTS[what], base64.b64decode(value))
    except OSError as err:
        os.write(2, f'remote: {err}\n'.encode())
    return 255


if sys.argv[1] == 'serve':
    listen(*sys.argv[2:])
else:
    sys.exit(run(*sys.argv[1:]))
