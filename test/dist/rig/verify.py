"""Reads VOLUME, and holds it against what writer.py has noted.

verify.py VOLUME STALE ACKS...    in the order in which the writers had the volume

Every acknowledged block has to hold its last acknowledged number, or a later one; and no block may
have a number of STALE or more: these are of a writer that had lost the volume. Prints
{"blocks", "lost", "stale"}: how many were acknowledged, and the others, of which there should be none.
"""
import json, os, struct, sys

volume, stale, *files = sys.argv[1:]
BLOCK, NR_BLOCKS = 4096, 16384
wanted = {}
for file in files:
    for line in open(file):
        place, number, _ = line.split()
        wanted[int(place)] = int(number)
fd = os.open(volume, os.O_RDONLY)
# Nothing that this machine has cached: what is there counts.
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
lost, foreign = [], []
for place in range(NR_BLOCKS):
    block = os.pread(fd, BLOCK, place * BLOCK)
    number, at = struct.unpack('<QQ', block[:16])
    if number >= int(stale):
        foreign.append([place, number])
    if place in wanted:
        isWhole = block == block[:16] * (BLOCK // 16) and at == place
        if not isWhole or number < wanted[place]:
            lost.append([place, wanted[place], number])
print(json.dumps({'blocks': len(wanted), 'lost': lost, 'stale': foreign}))
