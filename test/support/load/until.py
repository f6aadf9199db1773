import os


def until(stop):
    """Numbers of steps, until the file `stop` exists; one more, `stop`.begun, says that it goes."""
    step = 0
    while not os.path.exists(stop):
        yield step
        step += 1
        if step == 1:
            open(f'{stop}.begun', 'w').close()
