"""Dumps of every size come out as they went in, through every door, in little memory."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess]

SIZES = (0, 1, 65535, 65536, 10 << 20)
MEMORY_LIMIT = 300 << 20

GENERATOR = """
import random, sys
out = sys.stdout.buffer
for number in range(int(sys.argv[1])):  # mebibytes, half of which compress
    chance = random.Random(number)
    line = b"INSERT INTO t VALUES (%d, 'to be or not to be', %d);\\n" % (number, chance.randrange(10**9))
    out.write(chance.randbytes(512 << 10))
    out.write((line * ((512 << 10) // len(line) + 1))[: 512 << 10])
"""


@pytest.fixture
def store(castore: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("CASTORE_STORE", str(tmp_path / "store"))
    castore("init", tmp_path / "store")
    return castore


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    program = tmp_path / "generator.py"
    program.write_text(GENERATOR)
    return program


def part(done: subprocess.CompletedProcess) -> dict:
    """The fields of `snapshot --json` about its one part."""
    (only,) = json.loads(done.stdout)["parts"]
    return only


@pytest.mark.parametrize("size", SIZES)
def test_a_dump_comes_out_as_it_went_in_through_every_door(store: Run, tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    file = tmp_path / "file"
    file.write_bytes(data)
    taken = [
        store("snapshot", "s", "--json", "--dump", f"d={file}"),
        store("snapshot", "s", "--json", "--dump", "d=-", *([] if size else ["--allow-empty"]), input=data),
        store("snapshot", "s", "--json", "--exec", f"d=cat '{file}'"),
    ]
    for number, done in enumerate(taken, 1):
        assert part(done)["size"] == size
        assert part(done)["kind"] == "dump"
        assert store("cat", f"s@{number}:d", binary=True).stdout == data
    assert part(taken[0])["new_bytes"] == size
    assert [part(done)["new_chunks"] for done in taken[1:]] == [0, 0]
    store("restore", "s@1:d", tmp_path / "out")
    assert (tmp_path / "out" / "d").read_bytes() == data


def test_a_second_dump_that_is_equal_stores_nothing(store: Run, generator: Path) -> None:
    program = f"d={sys.executable} '{generator}' 20"
    first = part(store("snapshot", "s", "--json", "--exec", program))
    assert first["new_chunks"] > 0
    second = part(store("snapshot", "s", "--json", "--exec", program))
    assert (second["new_chunks"], second["new_bytes"], second["stored_bytes"]) == (0, 0, 0)
    assert (second["size"], second["chunks"]) == (first["size"], first["chunks"])


def test_an_insertion_in_the_middle_stores_little(store: Run) -> None:
    data = random.Random(1).randbytes(20 << 20)
    store("snapshot", "s", "--dump", "d=-", input=data)
    changed = data[: 7 << 20] + b"inserted" + data[7 << 20 :]
    again = part(store("snapshot", "s", "--json", "--dump", "d=-", input=changed))
    assert again["new_bytes"] < 2 << 20
    assert store("cat", "s@latest:d", binary=True).stdout == changed


def test_a_slow_writer_is_waited_for(store: Run, home: Path) -> None:
    pieces = [bytes([number]) * (1 + number * 3001) for number in range(12)]
    writer = "import sys, time\nfor n in range(12):\n    sys.stdout.buffer.write(bytes([n]) * (1 + n * 3001))\n    sys.stdout.flush()\n    time.sleep(0.1)\n"
    with subprocess.Popen([sys.executable, "-c", writer], stdout=subprocess.PIPE) as slow:
        subprocess.run(
            [sys.executable, "-m", "castore", "snapshot", "s", "--dump", "x=-"],
            stdin=slow.stdout,
            cwd=home,
            check=True,
            capture_output=True,
        )
    assert store("cat", "s@1:x", binary=True).stdout == b"".join(pieces)


def test_two_parts_of_one_name_are_refused(store: Run, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    for other in (["--dump", f"x={tmp_path / 'f'}"], ["--exec", "x=echo 1"], ["--tree", f"x={tmp_path}"]):
        failed = store("snapshot", "s", "--dump", "x=-", *other, expect=2, input=b"data")
        assert "'x'" in failed.stderr
    store("log", "s", expect=6)


def test_standard_input_is_given_to_one_part_only(store: Run) -> None:
    store("snapshot", "s", "--dump", "x=-", "--dump", "y=-", expect=2, input=b"data")


def test_a_program_that_fails_after_its_output_leaves_nothing(store: Run) -> None:
    store("snapshot", "s", "--exec", "d=sh -c 'head -c 3000000 /dev/urandom; exit 3'", expect=4)
    store("snapshot", "s", "--exec", "d=sh -c 'echo x; kill -9 $$'", expect=4)
    store("snapshot", "s", "--exec", "d=no-such-program-of-castore", expect=4)
    store("log", "s", expect=6)


def peak(*args: str, stdin: int | None = None, stdout: int | None = None, cwd: Path) -> tuple[int, int]:
    """Run castore; return its exit code, and the most memory that it had resident.

    A small process starts it: a child's peak begins with that of the process that forked it, and a test run
    may have grown far beyond castore.
    """
    read_end, write_end = os.pipe()
    launcher = (
        "import os, resource, subprocess, sys\n"
        "code = subprocess.call(sys.argv[2:])\n"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "os.write(int(sys.argv[1]), b'%d %d' % (code, peak))"
    )
    argv = [sys.executable, "-c", launcher, str(write_end), sys.executable, "-m", "castore", *args]
    with os.fdopen(read_end) as report:
        subprocess.run(argv, stdin=stdin, stdout=stdout, cwd=cwd, pass_fds=[write_end], check=True)
        os.close(write_end)
        code, peak_kib = map(int, report.read().split())
    return code, peak_kib << 10


def digest_of_cat(what: str, cwd: Path) -> tuple[str, int]:
    """Return the hash of what `castore cat` writes, and its peak of memory."""
    reader, writer = os.pipe()
    with subprocess.Popen(["sha256sum"], stdin=reader, stdout=subprocess.PIPE) as hasher:
        os.close(reader)
        code, memory = peak("cat", what, stdout=writer, cwd=cwd)
        os.close(writer)
        assert hasher.stdout is not None
        digest = hasher.stdout.read().split()[0].decode()
    assert code == 0
    return digest, memory


def expected_digest(generator: Path, count: int) -> str:
    with subprocess.Popen([sys.executable, generator, str(count)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        return hashlib.file_digest(process.stdout, "sha256").hexdigest()


def test_a_large_dump_takes_little_memory_in_and_out(store: Run, home: Path, generator: Path) -> None:
    with subprocess.Popen([sys.executable, generator, "700"], stdout=subprocess.PIPE) as source:
        assert source.stdout is not None
        code, memory_in = peak("snapshot", "s", "--dump", "x=-", stdin=source.stdout.fileno(), cwd=home)
        source.stdout.close()
    assert code == 0
    digest, memory_out = digest_of_cat("s@1:x", home)
    print(f"peaks of memory: in {memory_in >> 20} MiB, out {memory_out >> 20} MiB")
    assert digest == expected_digest(generator, 700)
    assert memory_in < MEMORY_LIMIT
    assert memory_out < MEMORY_LIMIT
    assert json.loads(store("log", "s", "--json").stdout)[0]["size"] == 700 << 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_gibibytes_take_little_memory_in_and_out(store: Run, home: Path, generator: Path) -> None:
    program = f"x={sys.executable} '{generator}' 5120"
    code, memory_in = peak("snapshot", "s", "--exec", program, cwd=home)
    assert code == 0
    digest, memory_out = digest_of_cat("s@1:x", home)
    print(f"peaks of memory: in {memory_in >> 20} MiB, out {memory_out >> 20} MiB")
    assert digest == expected_digest(generator, 5120)
    assert memory_in < MEMORY_LIMIT
    assert memory_out < MEMORY_LIMIT


def test_log_shows_the_newest_only_where_that_is_asked_for(store: Run, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    for service, revision in (("s", "a1"), ("s", "b2"), ("t", "a1"), ("s", "a3")):
        store("snapshot", service, "--dump", f"x={tmp_path / 'f'}", "--revision", revision)

    def shown(*arguments: str) -> list[tuple[str, int]]:
        found = json.loads(store("log", "--json", *arguments).stdout)
        return [(one["service"], one["number"]) for one in found]

    assert shown("s", "--limit", "2") == [("s", 3), ("s", 2)]
    assert shown("--limit", "2") == [("s", 3), ("t", 1)]
    assert shown("s", "--revision", "a", "--limit", "1") == [("s", 3)]
    assert shown("s", "--revision", "a") == [("s", 3), ("s", 1)]
    store("log", "s", "--limit", "0", expect=2)
