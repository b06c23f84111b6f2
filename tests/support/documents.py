"""The documentation as data: pages, their blocks of code, and a machine to run these on.

A block's language says what is done with it:

    ```sh                     run; the first command that fails fails the test
    ```console                run line by line after `$ `; what is printed has to match
    ```toml                   read by castore's parser
    ```toml /etc/castore.toml the same, and written there
    ```ini                    a unit file: its castore commands have to exist
    ```text                   nothing
    ```sh run-by: TEST        run by that test
    ```LANGUAGE not-run: WHY  nothing

A comment `<!-- test ... -->` at the beginning of a line has lines of shell that only tests run.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.checkout import ROOT

README = ROOT / "README.md"
DOCS = ROOT / "castore/docs"
PAGES = [README, *sorted(DOCS.glob("**/*.md"))]
_NOT_RUN = "not-run: "
_RUN_BY = "run-by: "
_BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$|^<!-- test\n(.*?)^-->$|^#+ +([^\n]+)$", re.DOTALL | re.MULTILINE)
_MARK = "\1"


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    page: str
    heading: str
    language: str
    """`test`: it is in a comment."""
    text: str
    reason: str = ""
    """Why it is not run; empty: it is."""
    test: str = ""
    """The test that runs it; empty: that of its page."""
    path: str = ""
    """Where it is written to."""

    @property
    def runs(self) -> bool:
        return not self.reason and not self.test and self.language in {"sh", "console", "test"}


def name_of(page: Path) -> str:
    """Return `README` or the topic."""
    return page.stem


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    found, heading = [], ""
    for match in _BLOCK.finditer(page.read_text()):
        language, info, text, hidden, title = match.groups()
        if title is not None:
            heading = title
        elif hidden is not None:
            found.append(Block(name_of(page), heading, "test", hidden))
        else:
            info = info.strip()
            reason = info.removeprefix(_NOT_RUN) if info.startswith(_NOT_RUN) else ""
            test = info.removeprefix(_RUN_BY) if info.startswith(_RUN_BY) else ""
            found.append(Block(name_of(page), heading, language, text, reason, test, "" if reason or test else info))
    return found


def block(topic: str, heading: str, place: int = 0, *, language: str = "") -> str:
    """Return the text of a block, by the heading above it and its place below that."""
    page = next(one for one in PAGES if name_of(one) == topic)
    below = [
        one for one in blocks(page)
        if one.heading == heading and one.language != "test" and language in {"", one.language}
    ]
    return below[place].text


@dataclass
class Machine:
    """A reader's machine: absolute paths are below a scratch directory, `castore` is in PATH."""

    root: Path
    replacements: dict[str, str] = field(default_factory=dict)
    """Of text in blocks: how servers of tests are reached."""

    def __post_init__(self) -> None:
        self.programs = self.root / "usr/local/bin"
        self.calls = self.root / "calls"
        self.home = Path(os.environ["HOME"])
        for folder in ("usr/local/bin", "etc/castore", "var/backups", "var/lib", "root", "srv", "mnt", "tmp"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        self.calls.touch()
        (self.home / "tools").symlink_to(ROOT / "tools")
        self.castore_is(f'exec {sys.executable} -m castore "$@"')
        self.program("python3", f'exec {sys.executable} "$@"')
        self.variables = self.root / "variables"
        self.variables.write_text("")

    def castore_is(self, line: str) -> None:
        """Make the program castore; line: of shell, which runs it."""
        config = self.root / "etc/castore/castore.toml"
        self.program("castore", f"[ ! -e {config} ] || export CASTORE_CONFIG=${{CASTORE_CONFIG-{config}}}\n{line}")

    def program(self, name: str, text: str) -> None:
        """Make a program."""
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def notes(self, *names: str) -> None:
        """Make programs that only note that they were run."""
        for name in names:
            self.program(name, f'echo "{name} $*" >> {self.calls}')

    def here(self, text: str) -> str:
        """Return a text with its absolute paths below the scratch directory."""
        text = re.sub(r"(?<![\w.~*)])/(?=(?:var|etc|usr/local|opt|root|srv|mnt|tmp|run/current-system)\b)", f"{self.root}/", text)
        for old, new in self.replacements.items():
            text = text.replace(old, new)
        return text

    def there(self, text: str) -> str:
        """Return what was printed as a reader's machine would have printed it."""
        return text.replace(str(self.home), "/root").replace(str(self.root), "")

    def run(self, text: str, *, expect: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run lines of shell that stop at the first that fails; exported variables stay for the next."""
        done = self._shell(["-ec", f". {self.variables}\n{self.here(text)}\n{self._keep}"], env)
        assert done.returncode == expect, (text, done.stdout, done.stderr)
        return done

    def converse(self, text: str) -> None:
        """Run the commands of a block one by one, and compare what each prints with what follows it."""
        said: list[tuple[str, str]] = []
        for line in text.splitlines():
            if line.startswith("$ "):
                said.append((line[2:], ""))
            elif said and said[-1][0].endswith("\\"):
                said[-1] = (said[-1][0] + "\n" + line, "")
            else:
                said[-1] = (said[-1][0], said[-1][1] + line + "\n")
        script = f". {self.variables}\n"
        for command, _ in said:
            script += f"{self.here(command)}\nstatus=$?; printf '{_MARK}%s{_MARK}' $status; (exit $status)\n"
        done = self._shell(["-c", script + self._keep], {}, merged=True)
        parts = done.stdout.split(_MARK)
        printed, codes = parts[0::2], parts[1::2]
        assert len(codes) == len(said), (text, done.stdout)
        for place, (command, expected) in enumerate(said):
            asked = place + 1 < len(said) and said[place + 1][0] == "echo $?"
            assert codes[place] == "0" or asked, (command, printed[place])
            assert is_like(self.there(printed[place]), expected), (
                f"$ {command}\nis documented to print\n{expected}\nand prints\n{self.there(printed[place])}"
            )

    @property
    def _keep(self) -> str:
        """Lines that keep variables and the working directory for the next block."""
        return f"{{ export -p; echo cd \"'$PWD'\"; }} >{self.variables}\n"

    def _shell(self, arguments: list[str], env: dict[str, str], *, merged: bool = False) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", *arguments], check=False, cwd=self.home, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT if merged else subprocess.PIPE,
            env={**os.environ, **env, "PATH": f"{self.programs}:{os.environ['PATH']}"},
        )


_KEY = re.compile(r"castore-(pub|admin|identity)-[a-z0-9.]+|\b[0-9a-f]{16,}\b|\bSTORE-ID\b")
_NUMBER = re.compile(r"\d+([.,]\d+)*")
_SIZE = re.compile(r"# (B|KiB|MiB|GiB|s|min)\b")


def _normal(text: str) -> list[str]:
    """Return lines without what differs from run to run: keys, numbers, units, widths of columns."""
    text = _NUMBER.sub("#", _KEY.sub("KEY", text))
    lines = (" ".join(_SIZE.sub("# B", line).split()) for line in text.splitlines())
    return [line for line in lines if line]


def is_like(printed: str, expected: str) -> bool:
    """Whether output is what a page says it is; `...` in the page matches any text."""
    pattern = r"\s*".join(re.escape(line).replace(r"\.\.\.", ".*") for line in _normal(expected))
    return re.fullmatch(pattern, "\n".join(_normal(printed)), re.DOTALL) is not None


def commands_in_units(text: str) -> list[list[str]]:
    """Return the castore commands that a unit file or a crontab runs."""
    return [shlex.split(line) for line in re.findall(r"\bcastore ([a-z][^;&|\n\"]*)", text)]
