"""castore and its peers as benchmarks run them: each with a store of its own, in a home of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Cost(NamedTuple):
    """What one command cost."""

    seconds: float
    cpu_seconds: float
    """In user and system mode, of the command and of all that it waited for."""
    peak_kib: int
    """Resident, of the command or of a child of it."""


_RUN_AND_MEASURE: Final = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
done = subprocess.run(sys.argv[2:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
seconds = time.perf_counter() - started
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(int(sys.argv[1]), "w") as file:
    json.dump([done.returncode, done.stderr.decode(errors="replace"), seconds,
               usage.ru_utime + usage.ru_stime, usage.ru_maxrss], file)
"""


def run(argv: list[str], env: dict[str, str] | None = None, stdin: str | None = None) -> Cost:
    """Run a command to its end. Ends the benchmark if it fails.

    Linux counts the memory of a parent as the child's peak until the child runs its own program, so a small
    process of its own runs the command, and not this one, which holds data.
    """
    read_end, write_end = os.pipe()
    launcher = [sys.executable, "-I", "-S", "-c", _RUN_AND_MEASURE, str(write_end), *argv]
    with open(stdin or os.devnull, "rb") as source, open(read_end, "rb") as report:
        process = subprocess.Popen(launcher, stdin=source, env=env, pass_fds=[write_end])
        os.close(write_end)
        code, errors, *cost = json.load(report)
        process.wait()
    if code:
        raise SystemExit(f"{argv}: exit code {code}: {errors}")
    return Cost(*cost)


class Tool:
    """A backup program with a store of its own in `home`."""

    name = ""

    def __init__(self, home: str) -> None:
        self.home = home
        self.store = os.path.join(home, "store")
        self.env = {**os.environ, "HOME": home}
        for kind in ("DATA", "STATE", "CACHE", "CONFIG"):
            self.env[f"XDG_{kind}_HOME"] = os.path.join(home, kind.lower())
        os.makedirs(home)

    @classmethod
    def version(cls) -> str | None:
        """Return the first line that the program prints of itself; None if it is not installed."""
        if shutil.which(cls.name) is None:
            return None
        argument = "version" if cls.name == "restic" else "--version"
        return subprocess.run([cls.name, argument], capture_output=True, text=True, check=True).stdout.split(
            "\n"
        )[0]

    def run(self, argv: list[str], stdin: str | None = None) -> Cost:
        """Run a command of this program."""
        return run(argv, self.env, stdin)

    def stored(self) -> int:
        """Return the bytes of the store."""
        return sum(
            os.path.getsize(os.path.join(folder, name))
            for folder, _, names in os.walk(self.store)
            for name in names
        )

    def init(self) -> None:
        """Create the store."""
        raise NotImplementedError

    def dump(self, path: str) -> list[str]:
        """Return the command that stores its standard input, which is the file at `path`."""
        raise NotImplementedError

    def tree(self, path: str) -> list[str]:
        """Return the command that stores a directory."""
        raise NotImplementedError

    def cat(self) -> list[str]:
        """Return the command that writes the last dump to standard output."""
        raise NotImplementedError

    def restore(self, into: str) -> list[str]:
        """Return the command that restores the last tree into a new directory."""
        raise NotImplementedError

    def in_place(self, path: str, onto: str) -> list[str] | None:
        """Return the command that makes `onto` what the first tree, stored from `path`, was; else None."""
        return None


class Castore(Tool):
    """This program."""

    name = "castore"

    @classmethod
    def version(cls) -> str | None:
        from castore.version import __version__

        return f"castore {__version__}"

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of a command of castore, with this store."""
        return [sys.executable, "-m", "castore", *arguments, "--store", self.store]

    def init(self) -> None:
        self.run(self.command("init"))

    def dump(self, path: str) -> list[str]:
        return self.command("snapshot", "s", "--dump", "d=-")

    def dump_file(self, path: str) -> list[str]:
        """Return the command that stores a file by its name."""
        return self.command("snapshot", "s", "--dump", f"d={path}")

    def tree(self, path: str) -> list[str]:
        return self.command("snapshot", "t", "--tree", f"t={path}")

    def cat(self) -> list[str]:
        return self.command("cat", "s@latest:d")

    def restore(self, into: str) -> list[str]:
        return self.command("restore", "t@latest:t", into)

    def in_place(self, path: str, onto: str) -> list[str]:
        return self.command("restore", "--in-place", "--yes", "t@1:t", onto)


class Borg(Tool):
    """borg 1, with its own encryption and zstd at level 3."""

    name = "borg"

    def __init__(self, home: str) -> None:
        super().__init__(home)
        self.env |= {"BORG_PASSPHRASE": "x", "BORG_BASE_DIR": home, "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes"}
        self.number = 0

    def init(self) -> None:
        self.run(["borg", "init", "-e", "repokey-blake2", self.store])

    def _create(self, path: str) -> list[str]:
        self.number += 1
        return ["borg", "create", "-C", "zstd,3", f"{self.store}::a{self.number}", path]

    def dump(self, path: str) -> list[str]:
        return self._create("-")

    def tree(self, path: str) -> list[str]:
        return self._create(path)

    def cat(self) -> list[str]:
        return ["borg", "extract", "--stdout", f"{self.store}::a{self.number}"]

    def restore(self, into: str) -> list[str]:
        os.makedirs(into)
        return ["sh", "-c", f"cd {into} && exec borg extract {self.store}::a{self.number}"]


class Borg2(Borg):
    """borg 2, as the program `borg2`, with BLAKE3, AES-OCB and zstd at level 3."""

    name = "borg2"

    def init(self) -> None:
        self.env["BORG_REPO"] = self.store
        self.run(["borg2", "repo-create", "-e", "aes256-ocb", "-i", "blake3"])

    def _create(self, path: str) -> list[str]:
        self.number += 1
        return ["borg2", "create", "-C", "zstd,3", f"a{self.number}", path]

    def cat(self) -> list[str]:
        return ["borg2", "extract", "--stdout", f"a{self.number}"]

    def restore(self, into: str) -> list[str]:
        os.makedirs(into)
        return ["sh", "-c", f"cd {into} && exec borg2 extract a{self.number}"]


class Restic(Tool):
    """restic, with its default compression."""

    name = "restic"

    def __init__(self, home: str) -> None:
        super().__init__(home)
        self.env |= {"RESTIC_PASSWORD": "x", "RESTIC_REPOSITORY": self.store}

    def init(self) -> None:
        self.run(["restic", "init"])

    def dump(self, path: str) -> list[str]:
        return ["restic", "backup", "--stdin", "--stdin-filename", "d"]

    def tree(self, path: str) -> list[str]:
        return ["restic", "backup", "--tag", "tree", path]

    def cat(self) -> list[str]:
        return ["restic", "dump", "latest", "/d"]

    def restore(self, into: str) -> list[str]:
        return ["restic", "restore", "latest", "--target", into]

    def in_place(self, path: str, onto: str) -> list[str] | None:
        known = subprocess.run(
            ["restic", "restore", "--help"], capture_output=True, text=True, check=True
        ).stdout
        if "--delete" not in known:
            return None  # before 0.17
        listed = subprocess.run(
            ["restic", "snapshots", "--json", "--tag", "tree"],
            capture_output=True,
            text=True,
            check=True,
            env=self.env,
        )
        first = json.loads(listed.stdout)[0]["id"]
        return ["restic", "restore", f"{first}:{path}", "--target", onto, "--delete"]


PEERS = (Borg, Borg2, Restic)


def installed(peers: Iterable[type[Tool]] = PEERS) -> list[type[Tool]]:
    """Return those of the peers that are on PATH."""
    return [peer for peer in peers if peer.version() is not None]


def warm(*paths: str) -> None:
    """Read files, so that no run pays for the disk."""
    for path in paths:
        subprocess.run(["sh", "-c", 'find "$0" -type f -exec cat {} + >/dev/null', path], check=True)
