"""castore analyze: its figures are those of a real store, and it leaves nothing."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess]

_SETTINGS = ((65536, True), (65536, False), (262144, True))


def write_table(path: Path, rows: int, changed: int = 0) -> None:
    """Write a dump of made-up rows; of each thousand, `changed` differ from the first night's."""
    rng = random.Random(7)
    words = [f"{rng.getrandbits(40):x}" for _ in range(3000)]
    with path.open("w") as file:
        for number in range(rows):
            text = " ".join(rng.choices(words, k=8))
            if number % 1000 < changed:
                text = f"changed {number} {text}"
            file.write(f"INSERT INTO page VALUES ({number}, '{text}');\n")


def on_disk(store: Path) -> int:
    return sum(os.path.getsize(os.path.join(top, name)) for top, _, names in os.walk(store) for name in names)


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two states of a tree: text that compresses, noise that does not, and copies."""
    folder = tmp_path_factory.mktemp("nights")
    rng = random.Random(3)
    found = []
    for night in (1, 2):
        top = folder / f"night-{night}"
        (top / "small").mkdir(parents=True)
        write_table(top / "table.sql", 100_000, changed=5 * (night - 1))
        rng.seed(3)
        for number in range(6):
            (top / f"noise-{number}").write_bytes(rng.randbytes(10_000_000))
        (top / "copy").write_bytes((top / "noise-1").read_bytes())
        for number in range(500):
            (top / "small" / f"{number}").write_text(f"{number} of {night if number < 20 else 0}\n" * 50)
        found.append(top)
    return found


def test_the_figures_agree_with_a_real_store(castore: Run, nights: list[Path], tmp_path: Path) -> None:
    command = ("analyze", "--json", "--nights", "--no-levels", "--no-peers", "--average", "64K,256K", *map(str, nights))
    found = json.loads(castore(*command).stdout)
    rows = {(row["average"], row["deltas"]): row for row in found["rows"]}
    assert (found["advice"]["average"], found["advice"]["deltas"]) in rows  # which one: the cutting key decides
    for average, deltas in _SETTINGS:
        store, config = tmp_path / f"store-{average}-{deltas}", tmp_path / f"{average}-{deltas}.toml"
        config.write_text(f'store = "{store}"\n' + ("" if deltas else 'base-cache = "off"\n'))
        castore("init", str(store), "--average", str(average), "--identity", str(tmp_path / f"key-{average}-{deltas}"))
        sizes = []
        for night in nights:
            castore("snapshot", "s", "--config", str(config), "--tree", f"t={night}")
            sizes.append(on_disk(store))
        row = rows[average, deltas]
        added = [night["stored"] for night in row["nights"]]
        assert sum(added) == row["stored"]
        assert sum(added) == pytest.approx(sizes[-1], rel=0.02)
        assert added[0] == pytest.approx(sizes[0], rel=0.02)
        assert row["plain"] > row["unique"] > row["stored"] > row["index"] > 0


def test_only_the_report_remains(castore: Run, home: Path, tmp_path: Path) -> None:
    """It needs no store, creates none, and removes its temporary files."""
    (tmp_path / "data").mkdir()
    write_table(tmp_path / "data" / "table.sql", 20_000)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = castore("analyze", tmp_path / "data", "--average", "64K", "--price", "6/TB-month", env={"TMPDIR": str(scratch)})
    lines = done.stdout.splitlines()
    assert [line.split()[:3] for line in lines if line.lstrip().startswith("64 KiB")] == [
        ["64", "KiB", "yes"],
        ["64", "KiB", "no"],
        ["64", "KiB", "casync"],
    ]
    assert all("█" in line for line in lines if "64 KiB  " in line)
    assert "castore init --average 65536" in done.stdout
    assert os.listdir(scratch) == []
    assert [name for _, _, names in os.walk(home) for name in names] == []


def test_the_output_of_a_program_is_analyzed_once(castore: Run, tmp_path: Path) -> None:
    write_table(tmp_path / "table.sql", 5_000)
    program = f"{sys.executable} -c \"import shutil, sys; open('{tmp_path}/runs', 'a').write('x'); sys.stdout.write(open('{tmp_path}/table.sql').read())\""
    found = json.loads(castore("analyze", "--json", "--exec", program, "--average", "16K").stdout)
    assert found["plain"] == (tmp_path / "table.sql").stat().st_size
    assert (tmp_path / "runs").read_text() == "x"


def test_errors_name_the_reason(castore: Run, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "empty").mkdir()

    def refused(code: int, *arguments: str | Path) -> str:
        done = castore("analyze", *arguments, expect=code, env={"TMPDIR": str(scratch)})
        assert os.listdir(scratch) == []
        return done.stderr

    assert "no such file" in refused(2, tmp_path / "missing")
    assert "have no content" in refused(2, tmp_path / "empty")
    assert "exited with status 7" in refused(4, "--exec", "sh -c 'echo begun; exit 7'")
    assert "not both" in refused(2, tmp_path / "empty", "--exec", "true")
    assert "name a PATH" in refused(2)
    assert "sizes like" in refused(2, tmp_path / "empty", "--average", "64Q")
    assert "a price like" in refused(2, tmp_path / "empty", "--price", "cheap")
    assert "1024 to" in refused(2, tmp_path / "empty", "--average", "100")


def test_an_interrupt_removes_the_temporary_files(home: Path, nights: list[Path], tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "castore", "analyze", str(nights[0])]
    with subprocess.Popen(command, cwd=home, env={**os.environ, "TMPDIR": str(scratch)}, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not list(scratch.glob("*/trial/nodes")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert os.listdir(scratch) == []


def test_generations_of_a_store_give_the_figures_of_their_store(castore: Run, tmp_path: Path) -> None:
    live = tmp_path / "live"
    (live / "sub" / "deep").mkdir(parents=True)
    rng = random.Random(5)
    for number in range(3):
        (live / f"noise-{number}").write_bytes(rng.randbytes(8_000_000))
    for night in (1, 2, 3):
        write_table(tmp_path / "table.sql", 30_000, changed=5 * night)
        write_table(live / "sub" / "deep" / "table", 20_000, changed=7 * night)
        (live / "sub" / "changing").write_text(f"night {night}\n")
        (live / f"noise-{night - 1}").write_bytes(rng.randbytes(2_000_000))
        if night == 1:
            castore("init", "--average", "65536")
        castore("snapshot", "s", "--tree", f"t={live}", "--dump", f"d={tmp_path / 'table.sql'}")
    command = ("analyze", "--json", "s@1..latest", "--average", "64K", "--no-levels", "--no-peers")
    found = json.loads(castore(*command).stdout)
    assert found["nights"] == ["s@1", "s@2", "s@3"]
    row = found["rows"][0]
    assert row["deltas"]
    sizes = castore("stats", "--json").stdout
    assert row["plain"] == json.loads(sizes)["total"]["plain"]
    assert row["stored"] == pytest.approx(json.loads(sizes)["pack_bytes"], rel=0.02)
    assert row["nights"][2]["unique"] < row["nights"][0]["unique"] / 3
    assert found["advice"]["forecast"]["growth"] > 0


def test_reading_generations_needs_the_identity(castore: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x" * 1000)
    castore("init", "--identity", str(tmp_path / "key"))
    castore("snapshot", "s", "--dump", f"d={tmp_path / 'file'}")
    errors = castore("analyze", "s@1..1", expect=7).stderr
    assert "identity" in errors
    castore("analyze", "s@1", "--identity", tmp_path / "key", "--average", "4K", "--no-peers")
    assert castore("analyze", "s@9..latest", expect=6).stderr
    assert "such as s@1..latest" in castore("analyze", "s@1..", expect=2).stderr


def test_nights_are_compared_with_whole_files(castore: Run, tmp_path: Path) -> None:
    for night in (1, 2):
        write_table(tmp_path / f"db-{night}.sql", 20_000, changed=10 * night)
    command = ("analyze", "--nights", tmp_path / "db-1.sql", tmp_path / "db-2.sql", "--average", "64K", "--no-peers", "--no-levels")
    found = json.loads(castore(*command, "--json").stdout)
    first, second = found["whole_files"]
    assert first["patch"] is None
    assert second["patch"] < second["compressed"] / 5
    deltas, without = found["rows"]
    assert deltas["nights"][1]["stored"] < without["nights"][1]["stored"]
    table = castore(*command).stdout
    assert "--patch-from" in table
    assert "in a year" in table


def test_the_page_needs_nothing_from_a_network(castore: Run, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    data = tmp_path / "</script><b>data"
    data.mkdir(parents=True)
    write_table(data / "table.sql", 5_000)
    castore("analyze", data, "--average", "16K,64K", "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 3
    assert json.loads(scripts[0])["title"] == str(data)
    assert len(json.loads(scripts[0])["rows"]) == 8
    own = page.replace(scripts[1], "")
    assert not re.search(r"""(?:src|href)=|@import|url\(|https?:""", own)
    assert "default-src 'none'" in own


def test_a_page_needs_the_charting_library(home: Path, tmp_path: Path) -> None:
    (tmp_path / "plotly").mkdir()
    (tmp_path / "plotly" / "__init__.py").write_text("raise ImportError")
    command = [sys.executable, "-m", "castore", "analyze", "/etc/hostname", "--html", str(tmp_path / "page.html")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'castore[plots]'" in done.stderr
    assert not (tmp_path / "page.html").exists()


def test_a_page_that_cannot_be_written_is_refused_at_once(castore: Run, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    done = castore("analyze", tmp_path, "--html", tmp_path / "missing" / "page.html", expect=2)
    assert "name a file in an existing directory" in done.stderr


def test_directories_of_successive_nights_are_compared_as_one(castore: Run, tmp_path: Path) -> None:
    """A copy of a directory is in another place than the live one, whose large files are compared by name."""
    for night in (1, 2):
        (tmp_path / f"night-{night}" / "dumps").mkdir(parents=True)
        write_table(tmp_path / f"night-{night}" / "dumps" / "table.sql", 130_000, changed=10 * night)
    command = ("analyze", "--json", "--nights", "--no-levels", "--no-peers", "--average", "64K")
    found = json.loads(castore(*command, tmp_path / "night-1", tmp_path / "night-2").stdout)
    (tmp_path / "live" / "dumps").mkdir(parents=True)
    castore("init", tmp_path / "store", "--average", "65536")
    sizes = [0]
    for night in (1, 2):
        data = (tmp_path / f"night-{night}" / "dumps" / "table.sql").read_bytes()
        (tmp_path / "live" / "dumps" / "table.sql").write_bytes(data)
        castore("snapshot", "s", "--tree", f"t={tmp_path / 'live'}", "--store", tmp_path / "store")
        sizes.append(on_disk(tmp_path / "store"))
    stored = [after - before for before, after in pairwise(sizes)]
    added = [night["stored"] for night in found["rows"][0]["nights"]]
    assert stored[1] < stored[0] / 10
    # Every store cuts with another key, so that the few changed chunks vary.
    assert abs(added[1] - stored[1]) < 0.02 * sum(stored)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes rights away from root")
def test_files_that_cannot_be_read_are_named(home: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_table(tmp_path / "data" / "table.sql", 1_000)
    for name in ("secret", "data/secret"):
        (tmp_path / name).write_text("secret")
        os.chown(tmp_path / name, 65534, -1)
        (tmp_path / name).chmod(0o600)

    def run(path: Path) -> subprocess.CompletedProcess:
        limited = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", sys.executable, "-m", "castore"]
        command = [*limited, "analyze", str(path), "--average", "16K", "--no-peers", "--no-levels"]
        return subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)

    done = run(tmp_path / "data")
    assert done.returncode == 3
    assert "castore: secret: cannot be read: Permission denied" in done.stderr
    assert "1 file is missing in the figures" in done.stderr
    assert "recommended" in done.stdout
    done = run(tmp_path / "secret")
    assert done.returncode == 2
    assert "cannot read" in done.stderr


def test_a_sample_is_marked_as_an_estimate(castore: Run, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_table(tmp_path / "data" / "table.sql", 1_000)
    command = ("analyze", tmp_path / "data", "--average", "64K", "--no-peers", "--no-levels", "--sample")
    assert "needs at least" in castore(*command, expect=2).stderr
    os.truncate(tmp_path / "data" / "table.sql", 200 << 20)
    done = castore(*command, "--sample-size", "64M")
    assert "estimated from a sample of" in done.stdout
    assert "error" in done.stdout
