"""Writes all blocks of VOLUME as writer.py does, and nothing is flushed unless there is a file for it.

fill.py VOLUME FIRST [ACKS]    FIRST is the first number
"""
import os, struct, sys, time

volume, first, *acks = sys.argv[1:]
BLOCK, NR_BLOCKS = 4096, 16384
fd = os.open(volume, os.O_RDWR)
for place in range(0, NR_BLOCKS, 16):
    run = range(place, place + 16)
    blocks = [struct.pack('<QQ', int(first) + one, one) * (BLOCK // 16) for one in run]
    os.pwrite(fd, b''.join(blocks), place * BLOCK)
if acks:
    os.fsync(fd)
    with open(acks[0], 'a') as log:
        for place in range(NR_BLOCKS):
            log.write(f'{place} {int(first) + place} {time.time():.3f}\n')
