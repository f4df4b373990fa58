"""A process that reads chunks through a cache: `cache_worker DIRECTORY BUDGET SEED READS`.

Prints a dot for each read, and ends with 1 at the first wrong byte.
"""

import random
import sys

from store.backends.cache.backend import Cache
from tests.fakes.chunks import ChunkSource, chunk

CHUNKS = [chunk(number, 1000 * (number % 40)) for number in range(150)]


def main(directory: str, budget: int, seed: int, reads: int) -> int:
    cache = Cache(ChunkSource(CHUNKS), directory, budget)
    chance = random.Random(seed)
    for _ in range(reads):
        one = chance.choice(CHUNKS)
        if cache.read(one.name) != one.raw:
            return 1
        if chance.random() < 0.05:
            cache.write(one.name, (one.raw,))  # drops it
        print(".", end="", flush=True)
    cache.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *(int(text) for text in sys.argv[2:])))
