"""Fixtures of all tests: a home of one's own, the command line, a tree with everything, servers."""

from __future__ import annotations

import gc
import os
import signal
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests.support import data_dir_templates, forked_cli
from tests.support.feature_tree import FeatureTree, make_feature_tree, must_be_complete
from tests.support.long_files import long_files_first
from tests.support.passphrases import derive_keys_cheaply
from tests.support.postgres import Postgres

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.seaweedfs import SeaweedFS
    from tests.support.sshd import Sshd

hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")

# The process that started the tests may have had them ignored, as nohup and a shell's & do; what they start shall not
# inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_ON_DEMAND = ("slow", "sanitizers")


def pytest_configure(config: pytest.Config) -> None:
    """Make what all processes of the run share."""
    derive_keys_cheaply()
    if not hasattr(config, "workerinput"):
        data_dir_templates.begin_run()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it."""
    if not hasattr(config, "workerinput"):
        data_dir_templates.end_run()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what takes long unless -m names its marker; begin with long files in each process."""
    for marker in _ON_DEMAND:
        if marker in config.option.markexpr:
            continue
        skip = pytest.mark.skip(reason=f"run with -m {marker}")
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(skip)
    if hasattr(config, "workerinput"):
        long_files_first(items, config.workerinput["workercount"])
    # Thousands of items live as long as the process: no collection of garbage needs to visit them.
    gc.collect()
    gc.freeze()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory that is empty, and an environment that knows nothing of castore."""
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    for name in [name for name in os.environ if name.startswith("CASTORE_")]:
        if name != "CASTORE_TEST_SERVERS":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(path))
    for kind, folder in {
        "DATA": ".local/share",
        "STATE": ".local/state",
        "CACHE": ".cache",
        "CONFIG": ".config",
    }.items():
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(path / folder))
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    return path


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[SeaweedFS]:
    """An S3 server with the bucket castore-test, one for all tests of a process: it takes seconds to start."""
    from tests.support.seaweedfs import SeaweedFS

    with SeaweedFS() as running:
        running.make_bucket("castore-test")
        yield running


@pytest.fixture(scope="session")
def shared_sshd() -> Iterator[Sshd]:
    """An SSH server, one for all tests of a process; `authorize` it before use."""
    from tests.support.sshd import Sshd

    with Sshd() as running:
        yield running


@pytest.fixture
def castore(home: Path) -> Callable[..., subprocess.CompletedProcess[Any]]:
    """Run the real command line in a process of its own in `home`, and check its exit code.

    castore(*args, expect=0, input=None, env=None, cwd=None, binary=False, timeout=250): args are str,
    bytes or paths; `expect` is the exit code to assert (None: any); `env` is added to the
    environment (a value of None removes); `cwd` is `home` unless given; stdout is text (names that
    are not UTF-8 as surrogates) unless `binary`; stderr is always text.
    """

    def run(
        *args: str | bytes | os.PathLike[str],
        expect: int | None = 0,
        input: str | bytes | None = None,  # noqa: A002 - as subprocess calls it
        env: dict[str, str | None] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        binary: bool = False,
        timeout: float = 250,
    ) -> subprocess.CompletedProcess[Any]:
        environment = {**os.environ, **(env or {})}
        done: subprocess.CompletedProcess[Any] = forked_cli.run(
            args,
            env={name: value for name, value in environment.items() if value is not None},
            cwd=cwd or home,
            given=input.encode("utf-8", "surrogateescape") if isinstance(input, str) else input,
            timeout=timeout,
        )
        done.stderr = done.stderr.decode("utf-8", "surrogateescape")
        if not binary:
            done.stdout = done.stdout.decode("utf-8", "surrogateescape")
        if expect is not None:
            shown = " ".join(map(str, args))
            assert done.returncode == expect, (
                f"castore {shown}\nexit code {done.returncode}, expected {expect}\n"
                f"stderr: {done.stderr}\nstdout: {done.stdout[-2000:]!r}"
            )
        return done

    return run


@pytest.fixture
def feature_tree(tmp_path: Path) -> FeatureTree:
    """A tree that has every feature of a file system; `feature_tree.path` is its top."""
    grown = make_feature_tree(tmp_path / "feature_tree")
    if must_be_complete(tmp_path):
        assert grown.left_out == []
    return grown


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for the test run; a skip where there is none (see tests/support/postgres.py)."""
    with Postgres() as server:
        yield server
