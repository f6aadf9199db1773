"""Writes numbered blocks to VOLUME, and notes in ACKS what a flush has acknowledged.

writer.py VOLUME ACKS FIRST STOP    until STOP exists, or an error. FIRST is the first number

Each block of 4096 bytes is its number and its place, again and again. A line of ACKS is the place,
the number and the time, of a block that an fsync has covered. Prints {"acknowledged", "next",
"longestPause", "error"}: the seconds between two fsyncs that succeeded, and what failed.
"""
import errno, json, os, random, struct, sys, time

volume, acks, first, stop = sys.argv[1:]
BLOCK, NR_BLOCKS, BATCH = 4096, 16384, 4
number = int(first)
rng = random.Random(number)
error = None
acknowledged = longest = 0
since = time.monotonic()


def write(number, place):
    block = struct.pack('<QQ', number, place) * (BLOCK // 16)
    while os.pwrite(fd, block, place * BLOCK) != BLOCK:
        pass


with open(acks, 'a', buffering=1) as log:
    try:
        what = 'open'
        fd = os.open(volume, os.O_RDWR)
        while not os.path.exists(stop):
            batch = [(rng.randrange(NR_BLOCKS), number + i) for i in range(BATCH)]
            number += BATCH
            begun = time.monotonic()
            what = 'write'
            for place, one in batch:
                write(one, place)
            what = 'fsync'
            os.fsync(fd)
            now = time.monotonic()
            longest, since = max(longest, now - since), now
            log.write(''.join(f'{place} {one} {time.time():.3f}\n' for place, one in batch))
            acknowledged += BATCH
    except OSError as err:
        took = round(time.monotonic() - begun, 1) if what != 'open' else 0
        error = {'what': what, 'errno': errno.errorcode[err.errno], 'seconds': took}
print(json.dumps({
    'acknowledged': acknowledged, 'next': number, 'longestPause': round(longest, 2), 'error': error
}))
