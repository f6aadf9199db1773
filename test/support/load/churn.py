"""Makes a file in FOLDER, writes a block to it and removes it, NR times or until SECONDS have passed.

Prints {"rounds", "seconds"}.
"""
import json, os, sys, time

folder, nr, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
os.chdir(folder)
begin = time.monotonic()
rounds = 0
while rounds < nr and time.monotonic() - begin < seconds:
    name = f'churn-{rounds}'
    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    os.pwrite(fd, b'x', 100_000)
    os.close(fd)
    os.unlink(name)
    rounds += 1
print(json.dumps({'rounds': rounds, 'seconds': round(time.monotonic() - begin, 1)}))
