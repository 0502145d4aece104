"""How fast CelebA's photographs are decoded into the cache, the disk's part included.

    python -m benchmarks.decoding --root=FOLDER

Without a copy of CelebA, avatars in its layout stand in for it, 178x218 JPEG as its files are. Each size is measured
several times, of which the fastest counts: what else the machine does only slows it down.
"""

import pathlib
import tempfile
import time

from absl import app, flags

from cdisc import console, runtime

_ROOT = flags.DEFINE_string("root", None, "A copy of CelebA; none draws avatars.")
_IMAGES = flags.DEFINE_integer("images", 4000, "How many files are read.", lower_bound=1)
_SIZES = flags.DEFINE_multi_integer("size", [64, 128], "Pixels a side.")
_TIMES = flags.DEFINE_integer("times", 3, "How often each size is measured.", lower_bound=1)


def main(_: list[str]) -> None:
    """Prints the images a second for each size."""
    runtime.configure()
    from cdisc.data import celeba, decoding, stand_in

    drawn = 1000  # more would take minutes to draw; read again they come from memory, as the next ones would
    root = pathlib.Path(_ROOT.value) if _ROOT.value else stand_in.folder(drawn, seed=0)
    known = celeba.read_attributes(root, ("Smiling",)).files
    files = [known[i % len(known)] for i in range(_IMAGES.value)]
    read = celeba.open_images(root, known)
    mean = sum(len(read(name)) for name in files) / len(files)
    console.say(f"{len(files)} files of {root}, {mean / 1000:.1f} kB each")
    names = [f"{i} {name}" for i, name in enumerate(files)]  # a name is decoded once

    def read_numbered(name: str) -> bytes:
        return read(name.partition(" ")[2])

    for size in _SIZES.value:
        seconds = []
        for _ in range(_TIMES.value):
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                decoding.decode_all(pathlib.Path(folder), {}, size, names, lambda: read_numbered)
                seconds.append(time.perf_counter() - start)
        console.say(f"{size}x{size}: {len(files) / min(seconds):,.0f} images a second")


if __name__ == "__main__":
    app.run(main)
