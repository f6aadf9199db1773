"""Writes all blocks of VOLUME as writer.py does, and notes in ACKS which have to be there.

fill.py VOLUME ACKS FIRST AS    FIRST is the first number. AS: flushed, they are flushed first; settled,
                                they are not; lost, nothing is noted
"""
import os, struct, sys, time

volume, acks, first, how = sys.argv[1:]
BLOCK, NR_BLOCKS = 4096, 16384
fd = os.open(volume, os.O_RDWR)
for place in range(0, NR_BLOCKS, 16):
    run = range(place, place + 16)
    blocks = [struct.pack('<QQ', int(first) + one, one) * (BLOCK // 16) for one in run]
    os.pwrite(fd, b''.join(blocks), place * BLOCK)
if how == 'flushed':
    os.fsync(fd)
if how != 'lost':
    with open(acks, 'a') as log:
        for place in range(NR_BLOCKS):
            log.write(f'{place} {int(first) + place} {time.time():.3f}\n')
