"""The benchmarks run, and a comparison of two runs finds what became worse."""

from __future__ import annotations

import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, os.path.join(ROOT, "bench", script), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_of_the_tree_benchmark_is_saved_and_compared(tmp_path):
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    done = run(
        "trees.py",
        *("--data", "small", "--scale", "0.001", "--runs", "1", "--alone"),
        *("--folder", str(tmp_path), "--json", str(before)),
    )
    assert done.returncode == 0, done.stderr
    saved = json.loads(before.read_text())
    assert saved["machine"]["cores"] >= 1
    for row in ("first", "unchanged", "changed", "restore", "in place, live", "in place, unseen copy"):
        figures = saved["rows"][f"small: {row}"]["castore"]
        assert len(figures["seconds"]) == 1
        assert figures["seconds"][0] > 0
        assert figures["peak_kib"][0] > 1000
    assert saved["rows"]["small: first"]["castore"]["stored_bytes"][0] > 1000

    assert run("compare.py", str(before), str(before)).returncode == 0

    saved["rows"]["small: first"]["castore"]["cpu_seconds"][0] *= 2
    after.write_text(json.dumps(saved))
    compared = run("compare.py", str(before), str(after))
    assert compared.returncode == 1
    assert "worse by more than 10 %: small: first: cpu_seconds x 2.00" in compared.stdout


def test_a_slower_machine_is_no_regression(tmp_path):
    def saved(seconds, floor):
        figures = {"cpu_seconds": [1.0], "peak_kib": [1], "stored_bytes": [1]}
        rows = {
            "row": {"castore": {"seconds": [seconds], **figures}, "cp -a": {"seconds": [floor], **figures}}
        }
        path = tmp_path / f"{seconds}-{floor}.json"
        path.write_text(json.dumps({"machine": {}, "versions": {}, "settings": {}, "rows": rows}))
        return str(path)

    assert run("compare.py", saved(1.0, 1.0), saved(1.3, 1.3)).returncode == 0
    assert run("compare.py", saved(1.0, 1.0), saved(1.3, 1.0)).returncode == 1
