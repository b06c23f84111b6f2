"""The fault of one service does not stop the others."""

from __future__ import annotations

import json
import os
import subprocess
import time

import pytest

from castore.errors import ConfigProblemsError
from castore.services.config import load

GOOD = '[service.good.parts.t]\nengine = "tree"\npath = "{tree}"\n'


@pytest.fixture
def configured(home):
    """Write a castore.toml, which the commands then read; `{tree}` is a directory with a file."""
    tree = home / "tree"
    tree.mkdir()
    (tree / "file").write_text("content")
    path = home / ".config" / "castore" / "castore.toml"
    path.parent.mkdir(parents=True)

    def write(text):
        path.write_text(text.replace("{tree}", str(tree)))
        return path

    return write


@pytest.mark.parametrize(
    "fault",
    [
        '[service.bad.parts.d]\nengine = "command"\ndump = ["no-such-program"]\n',
        '[service.bad]\nstop = ["/no/such/program"]\n',
        "[service.bad]\nkeep = {}\n",
        "[service.bad]\nunknown = 1\n",
        "[service]\nbad = 1\n",
        '[service.bad.parts.d]\nengine = "no-such-engine"\n',
        '[service."bad/name".parts.d]\nengine = "tree"\npath = "/"\n',
    ],
)
def test_a_service_is_snapshotted_although_another_ones_description_is_wrong(castore, configured, fault):
    configured(fault + GOOD)
    castore("snapshot", "good")
    assert json.loads(castore("log", "good", "--json").stdout)[0]["number"] == 1
    castore("restore", "good@latest", "out")


def test_the_service_whose_description_is_wrong_is_refused_with_all_mistakes(castore, configured):
    configured(GOOD + '[service.bad]\nunknown = 1\nother = 2\n[service.bad.parts.d]\nengine = "x"\n')
    said = castore("snapshot", "bad", expect=2).stderr
    for mistake in ("service.bad.unknown: unknown key", "service.bad.other: ", "service.bad.parts.d.engine: "):
        assert mistake in said
    for command in (["guard", "bad", "--", "true"], ["follow", "bad"], ["revision", "bad"], ["drill", "bad"]):
        castore("snapshot", "good")
        assert "service.bad.unknown" in castore(*command, expect=2).stderr


def test_config_check_reports_the_mistakes_of_all_services(castore, configured):
    configured(
        '[service.a]\ntimeout = -1\nhealth-timeout = "x"\nkeep = { last = -1 }\nrevision = { file = "x" }\n'
        '[service.a.parts.p]\nengine = "tree"\npath = "x"\nexcluded = []\n'
        '[service.a.parts.q]\nengine = "command"\ndump = ["no-such-program"]\nbefore = ["neither-is-this"]\n'
        '[service.b]\nschedule = "25:00"\n[service.b.parts.t]\nengine = "tree"\npath = "/no/such/tree"\n' + GOOD
    )
    castore("init")
    done = castore("config", "check", expect=2)
    for mistake in (
        "service.a.timeout: ",
        "service.a.health-timeout: ",
        "service.a.keep.last: ",
        "service.a.revision.file: unknown key",
        "service.a.parts.p.excluded: unknown key",
        "service.a.parts.p.path: 'x' is a relative path",
        "service.a.parts.q.dump[0]: there is no program 'no-such-program'",
        "service.a.parts.q.before[0]: there is no program 'neither-is-this'",
        "service.b.schedule: ",
        "b: t: cannot read the tree /no/such/tree",
        "good: t: ok",
    ):
        assert mistake in done.stdout, mistake
    assert "10 problems" in done.stderr


def test_mistakes_that_concern_all_services_stop_all(castore, configured):
    configured('store = "relative"\nunknown = 1\n' + GOOD)
    said = castore("snapshot", "good", expect=2).stderr
    assert "store: 'relative' is a relative path" in said
    assert "unknown: unknown key" in said


def test_all_mistakes_are_raised_at_once_where_a_file_has_to_be_right(configured):
    path = configured("[service.a]\nx = 1\n[service.b]\ny = 2\n")
    with pytest.raises(ConfigProblemsError) as caught:
        load(str(path))
    assert len(caught.value.problems) == 2


def test_programs_are_found_in_the_usual_directories_although_path_is_short(castore, configured, tmp_path):
    program = "ldconfig"  # in /sbin or /usr/sbin only
    assert not os.path.exists(f"/usr/bin/{program}")
    configured(f'[service.s.parts.d]\nengine = "command"\ndump = ["{program}", "--version"]\n')
    for path in (str(tmp_path), "", None):
        castore("snapshot", "s", env={"PATH": path})


def test_the_callers_path_goes_before_the_usual_directories(castore, configured, tmp_path):
    own = tmp_path / "ldconfig"
    own.write_text("#!/bin/sh\necho mine\n")
    own.chmod(0o755)
    configured('[service.s.parts.d]\nengine = "command"\ndump = ["ldconfig"]\n')
    castore("snapshot", "s", env={"PATH": str(tmp_path)})
    assert castore("cat", "s@latest:d").stdout == "mine\n"


def test_a_revision_program_that_hangs_ends_with_the_timeout_of_its_service(castore, configured):
    hung = '[service.bad]\ntimeout = 0.5\nrevision = { command = ["sleep", "60"] }\n[service.bad.parts.t]\nengine = "tree"\npath = "{tree}"\n'
    configured(hung + GOOD)
    began = time.monotonic()
    said = castore("snapshot", "--all", expect=4).stderr
    assert time.monotonic() - began < 30
    assert "bad: sleep failed: it took longer than 0.5 s" in said
    castore("show", "good@1")


def test_the_failure_of_one_service_does_not_stop_follow(castore, configured):
    configured(
        '[service.bad]\nrevision = { command = ["false"] }\n[service.bad.parts.t]\nengine = "tree"\npath = "{tree}"\n'
        '[service.worse]\nunknown = 1\n[service.good]\nrevision = { value = "r1" }\n[service.good.parts.t]\nengine = "tree"\npath = "{tree}"\n'
    )
    castore("snapshot", "good")
    done = castore("follow", "bad", "worse", "good", expect=4)
    assert "good" in done.stdout
    assert "bad: false failed" in done.stderr
    assert "worse: " in done.stderr
    found = json.loads(castore("follow", "bad", "good", "--json", expect=4).stdout)
    assert [("error" in one, one["service"]) for one in found] == [(True, "bad"), (False, "good")]


def test_a_revision_of_a_deep_directory(castore, configured, home):
    configured(GOOD.replace("[service.good.parts.t]", f'[service.good]\nrevision = {{ paths = ["{home}/deep"] }}\n[service.good.parts.t]'))
    path = f"{home}/deep" + "/d" * 1200
    subprocess.run(["mkdir", "-p", path], check=True)
    try:
        castore("init")
        before = castore("revision", "good").stdout
        with open(f"{path}/file", "w") as file:
            file.write("x")
        assert castore("revision", "good").stdout != before
    finally:
        subprocess.run(["rm", "-rf", f"{home}/deep"], check=True)  # Python's own removal recurses
