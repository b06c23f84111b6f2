"""Cutting: lengths, the mean, the edges, and the kernel under sanitizers."""

from __future__ import annotations

import glob
import os
import random
import shutil
import subprocess

import pytest

import castore.kernel
from castore.kernel import Cutter
from tests.support import reference_chunker
from tests.support.chunking import GEAR, cutter, in_pieces, lengths, reference_ends, whole

MEBI = 1 << 20
AVERAGES = (256, 257, 1000, 4096, 65536, 1 << 20)


def test_the_twin_hashes_windows_of_64_bytes():
    words = reference_chunker.gear_words(GEAR)
    data = random.Random(1).randbytes(300)
    for i, value in enumerate(reference_chunker._hashes(words, data)):
        assert value == reference_chunker.gear_hash(words, data[max(i - 63, 0) : i + 1])
        assert value == reference_chunker.gear_hash(words, data[: i + 1])


@pytest.mark.parametrize("average", AVERAGES)
def test_the_kernel_cuts_where_its_twin_cuts(average):
    rule = cutter(average)
    data = random.Random(average).randbytes(min(20 * average, 3 * MEBI))
    assert whole(rule, data) == reference_ends(rule, data)


@pytest.mark.parametrize("average", AVERAGES)
def test_chunks_lie_between_min_and_max(average):
    rule = cutter(average)
    data = random.Random(2).randbytes(8 * MEBI)
    found = lengths(whole(rule, data))
    assert sum(found) == len(data)
    assert all(rule.min <= length <= rule.max for length in found[:-1])
    assert 0 < found[-1] <= rule.max
    assert (rule.min, rule.max) == (average // 4, average * 8)


@pytest.mark.parametrize("average", [4096, 65536])
def test_the_mean_of_random_data_is_the_average_within_5_percent(average):
    # 1000 chunks vary by 1.5 % of their mean: with 64 KiB, 64 MiB are just enough to say 5 %.
    data = random.Random(3).randbytes(64 * MEBI)
    count = len(whole(cutter(average), data))
    assert 0.95 * average < len(data) / count < 1.05 * average


@pytest.mark.parametrize("value", [0, 1, 255])
def test_data_of_one_byte_value_is_cut_evenly(value):
    rule = cutter(4096)
    found = lengths(whole(rule, bytes([value]) * MEBI))
    assert len(set(found[:-1])) == 1
    assert found[0] in {rule.min, rule.normal + 1, rule.max}


def test_data_without_a_border_is_cut_at_the_greatest_length_in_both_ways():
    rule = cutter(4096)
    byte = next(byte for byte in range(256) if lengths(whole(rule, bytes([byte]) * rule.max))[0] == rule.max)
    data = bytearray([byte]) * (5 * rule.max // 2)
    ends = [rule.max, 2 * rule.max]
    assert rule.scan(data, 0, len(data), final=False) == ends
    borders = rule.find(data, 0, 0, len(data))
    assert borders is not None
    assert borders.choose(0, len(data), final=False) == ends
    assert borders.choose(2 * rule.max, len(data), final=True) == [len(data)]


@pytest.mark.parametrize("edit", ["insert", "remove", "replace"])
def test_a_change_of_one_byte_changes_few_chunks(edit):
    rule = cutter(4096)
    chance = random.Random(4)
    data = chance.randbytes(4 * MEBI)
    before = _chunks(rule, data)
    for _ in range(20):
        at = chance.randrange(len(data))
        middle = {"insert": b"x" + data[at : at + 1], "remove": b"", "replace": bytes([data[at] ^ 1])}[edit]
        after = _chunks(rule, data[:at] + middle + data[at + 1 :])
        assert len(after - before) <= 5


def _chunks(rule: Cutter, data: bytes) -> set[bytes]:
    ends = whole(rule, data)
    return {data[start:end] for start, end in zip([0, *ends], ends, strict=False)}


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 511, 512, 513, 2048, 2049])
def test_a_short_stream_is_cut_as_its_twin_cuts_it(length):
    rule = cutter(256)
    data = random.Random(5).randbytes(length)
    assert whole(rule, data) == reference_ends(rule, data)
    assert in_pieces(rule, [data]) == reference_ends(rule, data)


def test_an_empty_stream_has_no_chunks():
    assert whole(cutter(256), b"") == []
    assert cutter(256).scan(bytearray(), 0, 0, final=False) == []


def test_a_stretch_of_a_buffer_is_cut_as_if_alone():
    rule = cutter(256)
    data = random.Random(6).randbytes(20_000)
    buffer = bytearray(b"#" * 777 + data + b"#" * 333)
    found = rule.scan(buffer, 777, 777 + len(data), final=True)
    assert [end - 777 for end in found] == whole(rule, data)


def test_what_is_not_final_leaves_less_than_max():
    rule = cutter(256)
    data = random.Random(7).randbytes(50_000)
    found = rule.scan(bytearray(data), 0, len(data), final=False)
    assert found == whole(rule, data)[: len(found)]
    assert len(data) - found[-1] < rule.max


def test_a_scan_leaves_the_buffer_free_to_be_resized():
    buffer = bytearray(5000)
    cutter(256).scan(buffer, 0, 5000, final=True)
    del buffer[:100]
    assert len(buffer) == 4900


def test_another_gear_table_cuts_elsewhere():
    data = random.Random(8).randbytes(MEBI)
    assert whole(cutter(4096), data) != whole(cutter(4096, random.Random(9).randbytes(2048)), data)


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (0, 11), (6, 5)])
def test_a_range_outside_of_the_buffer_is_refused(start, end):
    with pytest.raises(ValueError, match="no range"):
        cutter(256).scan(bytearray(10), start, end, final=True)


@pytest.mark.parametrize(("gear", "average"), [(bytes(2047), 4096), (GEAR, 255), (GEAR, (1 << 24) + 1)])
def test_an_impossible_rule_is_refused(gear, average):
    with pytest.raises(ValueError, match="has"):
        Cutter(gear, average)


@pytest.mark.sanitizers
@pytest.mark.parametrize("optimise", ["-O1", "-O3"])
@pytest.mark.parametrize("name", ["compare_driver", "cut_driver", "kernel_driver", "rows_driver", "scan_driver"])
def test_the_kernel_does_nothing_undefined(tmp_path, name, optimise):
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    kernel = os.path.dirname(castore.kernel.__file__)
    driver = os.path.join(os.path.dirname(reference_chunker.__file__), f"{name}.c")
    sources = sorted(glob.glob(os.path.join(kernel, "*.c")))
    program = tmp_path / name
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    built = subprocess.run(
        [compiler, "-std=c11", "-g", "-Wall", "-Wextra", "-Werror", optimise, *sanitize, "-I", kernel, "-o", program, *sources, driver],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    # The search for leaks needs ptrace(2), which containers refuse.
    options = {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    folder = tmp_path / "folder"
    folder.mkdir()
    done = subprocess.run([program, folder], capture_output=True, text=True, check=False, env={**os.environ, **options})
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout.split()[0]) > 1000
