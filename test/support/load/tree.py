"""Files of a filesystem whose content is known.

tree.py run FOLDER SEED WRITERS STOP STATE [CGROUP]    changes files until STOP exists, then writes
                                                       to STATE what each has to hold
tree.py verify FOLDER STATE                            reads all of them

Each writer has a folder of its own and creates, overwrites, appends, cuts, renames, removes and
flushes files in it, and reads others back past the page cache. Prints {"steps", "bytes"}, and the
longest flush of `run` as "longestFlushMs".
"""
import hashlib, json, multiprocessing, os, random, sys, time

from until import until

MAX_FILES, MAX_SIZE = 12, 400_000


def sha(data):
    return hashlib.sha256(data).hexdigest()


def read_file(path):
    with open(path, 'rb') as reader:
        return reader.read()


class Writer:
    def __init__(self, folder, seed):
        self.folder, self.rng = folder, random.Random(seed)
        self.files = {}
        self.made = self.steps = self.bytes = 0
        self.longest_flush = 0.0
        os.makedirs(folder)

    def path(self, name):
        return os.path.join(self.folder, name)

    def new_name(self):
        self.made += 1
        return f'f{self.made}'

    def flush(self, fd):
        begin = time.monotonic()
        os.fsync(fd)
        self.longest_flush = max(self.longest_flush, time.monotonic() - begin)

    def change(self, name, data, offset, cut):
        """Writes `data`; the file's content is known as a whole, so a copy of it is kept."""
        content = self.files.get(name, bytearray())
        content[len(content):] = bytes(max(0, offset - len(content)))
        content[offset:offset + len(data)] = data
        if cut is not None:
            del content[cut:]
        with open(self.path(name), 'r+b' if name in self.files else 'xb') as file:
            file.seek(offset)
            file.write(data)
            file.flush()
            if cut is not None:
                os.ftruncate(file.fileno(), cut)
            if self.rng.random() < 0.5:
                self.flush(file.fileno())
        self.files[name] = content

    def verify(self, name):
        fd = os.open(self.path(name), os.O_RDONLY)
        try:
            # Dropped from the page cache: what is read comes from the device.
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            content = self.files[name]
            found = os.pread(fd, MAX_SIZE * 4, 0)
            assert found == bytes(content), f'{self.path(name)} is not what was written'
            self.bytes += len(found)
        finally:
            os.close(fd)

    def step(self):
        rng, names = self.rng, sorted(self.files)
        kind = rng.random()
        if len(names) < 4 or (kind < 0.3 and len(names) < MAX_FILES):
            self.change(self.new_name(), rng.randbytes(rng.randrange(MAX_SIZE)), 0, None)
        elif kind < 0.6:
            name = rng.choice(names)
            size = len(self.files[name])
            offset = rng.randrange(size + 1)
            data = rng.randbytes(rng.randrange(MAX_SIZE // 4))
            cut = rng.randrange(size + 1) if rng.random() < 0.1 else None
            if offset + len(data) < MAX_SIZE * 2:
                self.change(name, data, offset, cut)
        elif kind < 0.7:
            before, after = rng.choice(names), self.new_name()
            os.rename(self.path(before), self.path(after))
            self.files[after] = self.files.pop(before)
        elif kind < 0.8:
            name = rng.choice(names)
            os.unlink(self.path(name))
            del self.files[name]
        else:
            self.verify(rng.choice(names))
        self.steps += 1

    def run(self, stop):
        for _ in until(stop):
            self.step()
        return {
            'files': {self.path(name): sha(content) for name, content in self.files.items()},
            'steps': self.steps,
            'bytes': self.bytes,
            'flush': self.longest_flush,
        }


def work(job):
    folder, seed, stop = job
    return Writer(folder, seed).run(stop)


def run(folder, seed, writers, stop, state, cgroup=None):
    if cgroup is not None:
        with open(os.path.join(cgroup, 'cgroup.procs'), 'w') as procs:
            procs.write(str(os.getpid()))
    jobs = [(os.path.join(folder, f'w{i}'), f'{seed}-{i}', stop) for i in range(int(writers))]
    with multiprocessing.Pool(len(jobs)) as pool:
        results = pool.map(work, jobs, chunksize=1)
    files = {path: found for result in results for path, found in result['files'].items()}
    with open(state, 'w') as file:
        json.dump(files, file)
    return {
        'steps': sum(result['steps'] for result in results),
        'bytes': sum(result['bytes'] for result in results),
        'longestFlushMs': round(1000 * max(result['flush'] for result in results)),
    }


def verify(folder, state):
    with open(state) as file:
        files = json.load(file)
    size = 0
    for path, wanted in files.items():
        content = read_file(path)
        assert sha(content) == wanted, f'{path} is not what was written'
        size += len(content)
    there = {os.path.join(at, name) for at, _, names in os.walk(folder) for name in names}
    assert there == set(files), f'{there ^ set(files)}: there or missing, wrongly'
    return {'steps': len(files), 'bytes': size}


if __name__ == '__main__':
    print(json.dumps({'run': run, 'verify': verify}[sys.argv[1]](*sys.argv[2:])))
