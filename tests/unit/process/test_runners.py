"""Programs whose output is kept or that are fed: real ones, and every way they fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from castore.errors import ProgramError
from castore.process.runners import feed, output_of, run_dump

MIB = 1 << 20


def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(file.read().split())


@pytest.fixture(autouse=True)
def no_child_and_no_descriptor_is_left():
    before = children(), len(os.listdir("/proc/self/fd"))
    yield
    assert (children(), len(os.listdir("/proc/self/fd"))) == before


def read_all(readinto, room=1 << 16):
    buffer = memoryview(bytearray(room))
    pieces = []
    while count := readinto(buffer):
        pieces.append(bytes(buffer[:count]))
    return b"".join(pieces)


def sh(script):
    return ["sh", "-c", script]


def test_the_standard_output_of_a_program_is_read_to_its_end():
    with run_dump(sh("echo one; sleep 0.1; echo two")) as readinto:
        assert read_all(readinto, 3) == b"one\ntwo\n"
        assert readinto(memoryview(bytearray(3))) == 0


def test_a_program_has_no_standard_input():
    with run_dump(["cat"]) as readinto:
        assert read_all(readinto) == b""


def test_fifty_megabytes_pass_both_ways():
    source = os.urandom(MIB)
    script = f"import sys\nfor _ in range(50): sys.stdout.buffer.write(bytes.fromhex('{source[:16].hex()}') * 65536)"
    with run_dump([sys.executable, "-c", script]) as readinto:
        data = read_all(readinto, MIB)
    assert data == source[:16] * 65536 * 50


def test_a_fed_program_gets_everything(tmp_path):
    chunks = [os.urandom(MIB)] * 50
    feed(sh(f"cat > {tmp_path}/out"), iter(chunks))
    assert (tmp_path / "out").read_bytes() == b"".join(chunks)
    feed(sh(f"cat > {tmp_path}/out"), [])
    assert (tmp_path / "out").read_bytes() == b""
    feed(sh(f"cat > {tmp_path}/out"), [memoryview(b"abc"), b"", b"d"])
    assert (tmp_path / "out").read_bytes() == b"abcd"


FAILURES = [
    (["false"], "false failed: it exited with status 1"),
    (sh("kill -9 $$"), "sh failed: it was killed by SIGKILL"),
    (sh("kill -34 $$"), "sh failed: it was killed by"),
    (["no-such-program"], "there is no program 'no-such-program'"),
    (["/no/such"], "there is no program '/no/such'"),
    (["/etc/passwd"], "cannot run '/etc/passwd': Permission denied"),
    (["sh", "\0"], "cannot run 'sh': embedded null byte"),
    ([], "no program is named"),
]


@pytest.mark.parametrize(("argv", "message"), FAILURES)
def test_a_program_that_fails_is_an_error(argv, message):
    with pytest.raises(ProgramError, match=message), run_dump(argv) as readinto:
        read_all(readinto)
    with pytest.raises(ProgramError, match=message):
        feed(argv, [])
    with pytest.raises(ProgramError, match=message):
        output_of(argv)


def test_a_failure_after_megabytes_is_raised_at_the_end_and_when_the_block_is_left():
    read = 0
    program = sh("head -c 3000000 /dev/zero; exit 3")
    with pytest.raises(ProgramError, match="status 3"), run_dump(program) as readinto:
        buffer = memoryview(bytearray(MIB))
        with pytest.raises(ProgramError, match="status 3"):
            while count := readinto(buffer):
                read += count
    assert read == 3_000_000


def test_a_dump_that_was_not_read_to_its_end_is_an_error():
    with pytest.raises(ProgramError, match="killed by SIGTERM"), run_dump(["yes"]) as readinto:
        assert readinto(memoryview(bytearray(100)))


def test_leaving_by_an_error_ends_the_program():
    with pytest.raises(KeyboardInterrupt), run_dump(sh("exec sleep 100")):
        raise KeyboardInterrupt


def test_a_program_that_ignores_the_request_to_end_is_killed():
    begun = time.monotonic()
    program = sh("trap '' TERM PIPE; echo ready; while :; do sleep 0.05; done")
    with pytest.raises(ZeroDivisionError), run_dump(program) as readinto:
        readinto(memoryview(bytearray(10)))
        raise ZeroDivisionError
    assert time.monotonic() - begun < 10


def test_a_program_that_stops_reading_early_is_an_error():
    with pytest.raises(ProgramError, match="exited with status 0, but stopped reading after"):
        feed(["true"], iter([bytes(MIB)] * 50))
    with pytest.raises(ProgramError, match="status 4"):
        feed(sh("head -c 10 >/dev/null; exit 4"), iter([bytes(MIB)] * 50))


def test_a_program_that_is_fed_never_takes_an_error_for_the_end(tmp_path):
    done = tmp_path / "done"

    def chunks():
        yield b"first"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        feed(sh(f"cat >/dev/null; touch {done}"), chunks())
    time.sleep(0.1)
    assert not done.exists()


def test_what_a_fed_program_prints_does_not_mix_with_castores_output(capfd):
    feed(sh("cat; echo hint >&2"), [b"data"])
    assert capfd.readouterr() == ("", "hint\n")


def test_short_output_is_returned_whole_and_long_output_refused():
    assert output_of(sh("echo one; sleep 0.1; echo two")) == b"one\ntwo\n"
    with pytest.raises(ProgramError, match="more than the 1048576 bytes"):
        output_of(["yes"])


def test_a_program_may_be_given_the_standard_input(tmp_path):
    script = (
        "from castore.process.runners import output_of;"
        "print(output_of(['cat'], interactive=True), output_of(['cat']))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], input=b"secret", capture_output=True, check=True
    )
    assert run.stdout == b"b'secret' b''\n"


def sleepers(seconds: str) -> list[int]:
    """Return the processes that sleep that long."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if file.read() == f"sleep\0{seconds}\0".encode():
                    found.append(int(pid))
        except OSError:
            continue
    return found


THREAD = "import subprocess, threading; t = threading.Thread(target=lambda: subprocess.run(['sleep', '{0}'])); t.start(); t.join()"
STRAYS = [
    [sys.executable, "-c", THREAD],
    ["sh", "-c", "setsid sleep {0}; true"],
    ["sh", "-c", "setsid sleep {0} & wait"],
    ["sh", "-c", "sleep {0} & echo data"],  # the program has ended, and its pipe is open
    ["sh", "-c", "(setsid sleep {0} &) ; echo data"],
]


@pytest.mark.parametrize("stray", STRAYS, ids=["thread", "session", "session-waited-for", "pipe", "orphan"])
def test_what_takes_too_long_ends_with_all_that_it_has_started(stray):
    seconds = f"{60 + os.getpid() / 1e7:.7f}"
    argv = [word.format(seconds) for word in stray]
    for use in (lambda: output_of(argv, timeout=0.4), lambda: read_dump(argv, 0.4)):
        begun = time.monotonic()
        with pytest.raises(ProgramError, match=r"took longer than 0.4 s"):
            use()
        assert time.monotonic() - begun < 10
        for _ in range(50):
            if not sleepers(seconds):
                break
            time.sleep(0.02)
        assert sleepers(seconds) == []


def read_dump(argv, timeout):
    with run_dump(argv, timeout=timeout) as readinto:
        read_all(readinto)


def test_only_what_a_filter_lets_through_is_shown_and_recorded(capfd):
    def only(line):
        return line.replace(b"5", b"five") if line.startswith(b"ERROR") else None

    script = "cat >/dev/null; echo 'row secret'; echo 'ERROR 5: x' >&2; echo secret >&2; head -c 99999 /dev/zero | tr '\\0' s >&2; printf 'ERROR half' >&2; exit 3"
    with pytest.raises(ProgramError) as caught:
        feed(sh(script), [b"data"], only=only)
    assert str(caught.value) == "sh failed: it exited with status 3: ERROR five: x"
    assert capfd.readouterr().err == "ERROR five: x\n"
    with pytest.raises(ProgramError, match=r"status 4: ERROR half$"):
        output_of(sh("printf 'secret\\nERROR half' >&2; exit 4"), only=only)


def test_a_server_that_was_started_ends_with_castore():
    seconds = f"{70 + os.getpid() / 1e7:.7f}"
    script = f"""
import signal, time
from castore.process.servers import running, unprivileged
with running(["sleep", "{seconds}"], signal.SIGTERM, account=unprivileged("nobody"), cwd="/"):
    print("up", flush=True)
    time.sleep(60)
"""
    castore = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert castore.stdout is not None
        assert castore.stdout.readline() == b"up\n"
        assert len(sleepers(seconds)) == 1
    finally:
        castore.send_signal(signal.SIGKILL)
        castore.wait()
        castore.stdout.close()
    for _ in range(100):
        if not sleepers(seconds):
            break
        time.sleep(0.02)
    assert sleepers(seconds) == []


@pytest.mark.parametrize(("script", "reason"), [("kill -STOP $$", "did nothing for 1 s"), ("exec cat fifo", "did nothing for 1 s")])
def test_a_program_that_does_nothing_is_ended(tmp_path, script, reason):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ProgramError, match=reason), run_dump(["sh", "-c", f"cd {tmp_path}; {script}"], idle=1) as readinto:
        readinto(memoryview(bytearray(10)))


def test_a_program_that_waits_for_castore_or_works_slowly_is_not_ended():
    with run_dump(["sh", "-c", "head -c 200000 /dev/zero; for i in 1 2 3 4 5 6 7 8 9; do sleep 0.3; done; echo end"], idle=2) as readinto:
        time.sleep(2.5)
        total, room = 0, memoryview(bytearray(1 << 16))
        while count := readinto(room):
            total += count
    assert total == 200004
