"""`python -m benchmarks.bare_argon2 SECONDS KIB PASSES LANES`: prints how many hashes a second the cores can verify."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher, Type


def verifications_per_second(seconds: float, memory_kib: int, passes: int, lanes: int) -> float:
    """A thread for each core, and nothing else to do."""
    hasher = PasswordHasher(memory_cost=memory_kib, time_cost=passes, parallelism=lanes, type=Type.ID)
    kept = hasher.hash("Analytical-Engine-1843")
    began = time.perf_counter()

    def work(_: int) -> int:
        done = 0
        while time.perf_counter() - began < seconds:
            hasher.verify(kept, "Analytical-Engine-1843")
            done += 1
        return done

    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(work, range(threads)))
    return done / (time.perf_counter() - began)


if __name__ == "__main__":
    print(verifications_per_second(float(sys.argv[1]), *map(int, sys.argv[2:5])))
