"""Makes, renames, exchanges, copies and removes files in FOLDER until STOP exists: SEED decides how.

Every call has to succeed, and after each the folder has to show the files that were there, with what
was written to them: nothing fails, nothing is done twice. Names begin with PREFIX. Leaves no file.
Prints {"steps"}.
"""
import ctypes, json, os, random, sys

from until import until

folder, prefix, seed, stop = sys.argv[1:]
rng = random.Random(seed)
libc = ctypes.CDLL(None, use_errno=True)
EXCHANGE, CURRENT_DIRECTORY = 2, -100
SIZE = 256 * 1024
os.chdir(folder)
files = {}
made = 0


def new_name():
    global made
    made += 1
    return f'{prefix}{made}'


def make():
    name, text = new_name(), f'{prefix} {made}'.encode().ljust(32)
    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    os.ftruncate(fd, SIZE)
    os.pwrite(fd, text, 70_000)
    os.close(fd)
    files[name] = text


def rename():
    before, after = rng.choice(sorted(files)), new_name()
    os.rename(before, after)
    files[after] = files.pop(before)


def rename_over():
    before, after = rng.sample(sorted(files), 2)
    os.rename(before, after)
    files[after] = files.pop(before)


def exchange():
    a, b = rng.sample(sorted(files), 2)
    at = CURRENT_DIRECTORY
    if libc.renameat2(at, a.encode(), at, b.encode(), EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), 'renameat2')
    files[a], files[b] = files[b], files[a]


def copy():
    source, target = rng.choice(sorted(files)), new_name()
    with open(source, 'rb') as reader, open(target, 'xb') as writer:
        assert os.copy_file_range(reader.fileno(), writer.fileno(), SIZE) == SIZE
    files[target] = files[source]


def remove():
    name = rng.choice(sorted(files))
    os.unlink(name)
    del files[name]


def read(name):
    with open(name, 'rb') as reader:
        return os.pread(reader.fileno(), 32, 70_000)


for nr in until(stop):
    few = len(files) < 4
    step = make if few else rng.choice([rename, rename_over, exchange, exchange, copy, remove])
    if len(files) > 12:
        step = remove
    try:
        step()
    except OSError as err:
        raise AssertionError(f'step {nr}: {step.__name__} failed') from err
    found = {name: read(name) for name in os.listdir() if name.startswith(prefix)}
    assert found == files, f'step {nr}: after {step.__name__} {found}, not {files}'
for name in files:
    os.unlink(name)
print(json.dumps({'steps': nr + 1}))
