"""Measures pauses: reads and writes 4 KiB of FILE, with O_DIRECT, every 5 ms until STOP exists.

A read that is not what was written last is an error, as is every errno. Prints
{"requests", "longestMs"}.
"""
import json, mmap, os, sys, time

from until import until

file, stop = sys.argv[1:]
fd = os.open(file, os.O_RDWR | os.O_DIRECT)
page, found = mmap.mmap(-1, 4096), mmap.mmap(-1, 4096)
requests = longest = 0


def timed(request, *args):
    global requests, longest
    begin = time.monotonic()
    size = request(*args)
    longest = max(longest, time.monotonic() - begin)
    requests += 1
    assert size == 4096, f'{request.__name__}: {size} bytes'


for step in until(stop):
    at = step % 256 * 4096
    page[:] = os.urandom(4096)
    timed(os.pwritev, fd, [page], at)
    timed(os.preadv, fd, [found], at)
    assert found[:] == page[:], f'other bytes at {at}'
    time.sleep(0.005)
print(json.dumps({'requests': requests, 'longestMs': round(longest * 1000)}))
