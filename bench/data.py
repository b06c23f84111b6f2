"""Data to measure with: made from a seed, so that every run and every tool sees the same bytes."""

from __future__ import annotations

import os
import random
import zlib


def write_dump(path: str, size: int, *, night: int = 0, seed: int = 1) -> None:
    """Write about `size` bytes that look like a plain SQL dump; each night changes 1 % of its rows."""
    words = [f"{random.Random(i).getrandbits(40):x}"[: 3 + i % 7] for i in range(4000)]
    with open(path, "w", encoding="ascii", buffering=1 << 20) as file:
        written = 0
        row = 0
        while written < size:
            version = 0
            for day in range(1, night + 1):
                if zlib.crc32(f"{row}/{day}/{seed}".encode()) % 100 == 0:
                    version = day
            rng = random.Random(f"{row}/{version}/{seed}")
            text = " ".join(rng.choices(words, k=12))
            line = f"{row}\t{rng.randrange(10**6)}\t2026-{rng.randrange(1, 13):02}-01\t{text}\n"
            written += file.write(line)
            row += 1


def write_tree(path: str, files: int, *, seed: int = 1) -> None:
    """Make a tree of `files` files in directories of 100: text of 0 to 8 KiB, one in 200 of 1 MiB."""
    rng = random.Random(seed)
    words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 10))) for _ in range(2000)]
    for number in range(files):
        folder = os.path.join(path, f"{number // 10000:02}", f"{number // 100:05}")
        if number % 100 == 0:
            os.makedirs(folder)
        size = 1 << 20 if number % 200 == 199 else rng.randrange(8192)
        data = b" ".join(rng.choices(words, k=size // 6 + 1))[:size]
        with open(os.path.join(folder, f"file-{number:06}.txt"), "wb") as file:
            file.write(data)
