"""Identities and recipients through the command line, and what a store reveals without a key."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
from pathlib import Path

import pytest

CHATTY = "unmistakable plain content "
SECRET_TEXT = re.compile(r"castore-(?:identity|locked|writer)-[a-z2-7]{6,}")


class CommandLine:
    """A machine with a store, on which commands are run; all that they print is kept."""

    def __init__(self, run, folder):
        self.run, self.folder = run, folder
        self.store = folder / "store"
        self.first = folder / "keys" / "first"
        self.printed = []
        self.machines = 0
        self.versions = {}

    def __call__(self, *args, machine=None, **options):
        env = {"CASTORE_STORE": str(self.store), **(machine or {}), **options.pop("env", {})}
        done = self.run(*args, env=env, **options)
        out = done.stdout if isinstance(done.stdout, str) else done.stdout.decode("utf-8", "replace")
        self.printed += [out, done.stderr]
        return done

    def init(self):
        self("init", self.store, "--identity", self.first)
        self.admins = [self.admin(self.first)]
        return self

    def admin(self, identity, **options):
        """Return the admin key of an identity."""
        return self("key", "show", "--identity", identity, **options).stdout.split()[1]

    @property
    def trust(self):
        """What a machine that never saw the store is given."""
        return [word for admin in self.admins for word in ("--trust-admin", admin)]

    def machine(self):
        """The environment of a machine that never saw the store."""
        self.machines += 1
        home = self.folder / f"machine{self.machines}"
        home.mkdir()
        kinds = ("DATA", "STATE", "CACHE", "CONFIG")
        return {"HOME": str(home), **{f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in kinds}}

    def snapshot(self):
        """Take one more generation; return its number."""
        number = len(self.versions) + 1
        tree = self.folder / "tree"
        (tree / "sub-folder-of-it").mkdir(parents=True, exist_ok=True)
        (tree / "sub-folder-of-it" / f"small-file-{number}").write_text(f"{CHATTY}{number}")
        (tree / "large-file").write_bytes(os.urandom(300_000))
        dump = self.folder / "dump"
        dump.write_bytes(os.urandom(100_000) + CHATTY.encode() * 100)
        self(
            "snapshot", "web-service", "--revision", f"revision-number-{number}",
            "--tree", f"tree-part={tree}", "--dump", f"dump-part={dump}",
        )  # fmt: skip
        files = {path.relative_to(tree): path.read_bytes() for path in tree.rglob("*") if path.is_file()}
        self.versions[number] = (files, dump.read_bytes())
        return number

    def reads_all(self, identity, machine=None):
        """Restore every generation with an identity, and nothing else, and compare."""
        machine = machine or self.machine()
        for number, (files, dump) in self.versions.items():
            out = Path(machine["HOME"]) / f"out{number}"
            self("restore", f"web-service@{number}", out, "--identity", identity, *self.trust, machine=machine)
            assert (out / "dump-part").read_bytes() == dump
            top = out / "tree-part"
            found = {path.relative_to(top): path.read_bytes() for path in top.rglob("*") if path.is_file()}
            assert found == files

    def reads_nothing(self, identity, machine=None):
        for number in self.versions:
            done = self(
                "cat", f"web-service@{number}:dump-part", "--identity", identity, *self.trust,
                expect=7, machine=machine or self.machine(),
            )  # fmt: skip
            assert done.stdout == ""

    def new_key(self, name, *options, **more):
        """Make an identity; return its file and public key."""
        path = self.folder / "keys" / name
        public = self("key", "new", path, *options, **more).stdout.strip()
        self.admins.append(self.admin(path, **more))
        return path, public

    def listed(self):
        found = json.loads(self("key", "list", "--json").stdout)
        return {one["recipient"]: one["label"] for one in found["recipients"]}

    def objects(self):
        return sorted(path.relative_to(self.store) for path in self.store.rglob("*") if path.is_file())


@pytest.fixture
def command_line(castore, tmp_path):
    made = CommandLine(castore, tmp_path).init()
    yield made
    for text in made.printed:
        assert not SECRET_TEXT.search(text), "a secret was printed"


def secret_of(path):
    (line,) = [line for line in Path(path).read_text().splitlines() if not line.startswith("#")]
    return line


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_an_added_identity_alone_restores_old_and_new_on_a_fresh_machine(command_line):
    command_line.snapshot()
    packs = {path: (command_line.store / path).read_bytes() for path in command_line.objects() if path.parts[0] == "packs"}
    second, public = command_line.new_key("second")
    assert re.fullmatch(r"castore-pub-[a-z2-7]+", public)
    command_line.reads_nothing(second)
    done = command_line("key", "add", public, "--label", "off site", "--identity", command_line.first)
    assert public in done.stdout
    for path, data in packs.items():
        assert (command_line.store / path).read_bytes() == data, "adding rewrites no data"
    command_line.snapshot()
    assert command_line.listed()[public] == "off site"
    assert len(command_line.listed()) == 2
    command_line.reads_all(second)
    command_line.reads_all(command_line.first)


def test_the_second_identity_works_when_the_first_and_its_machine_are_lost(command_line):
    command_line.snapshot()
    second, public = command_line.new_key("second")
    command_line("key", "add", public, "--admin", command_line.admins[-1], "--identity", command_line.first)
    command_line.first.unlink()
    other = command_line.machine()
    done = command_line("key", "adopt", "--host", "other", "--identity", second, machine=other, expect=7)
    assert f"--trust-admin {command_line.admins[0]}" in done.stderr
    command_line("key", "adopt", "--host", "other", "--identity", second, *command_line.trust, machine=other)
    (key,) = Path(other["HOME"]).rglob("writer.key")
    assert mode(key) == 0o600
    assert mode(key.parent) == 0o700
    (command_line.folder / "more").write_text("from elsewhere")
    args = ("snapshot", "web-service", "--dump", f"dump-part={command_line.folder / 'more'}")
    command_line(*args, machine=other)
    args = ("cat", "web-service@latest:dump-part", "--host", "other", "--identity", second, *command_line.trust)
    done = command_line(*args, machine=command_line.machine())
    assert done.stdout == "from elsewhere"
    command_line("snapshot", "web-service", "--dump", "x=/dev/null", machine=command_line.machine(), expect=7)


def test_a_removed_identity_opens_nothing_any_more(command_line):
    command_line.snapshot()
    second, public = command_line.new_key("second")
    command_line("key", "add", public, "--identity", command_line.first)
    command_line.snapshot()
    command_line.reads_all(second)
    before = {path for path in command_line.objects() if path.parts[0] in {"sessions", "config"}}
    command_line("key", "remove", public, "--identity", command_line.first)
    command_line.snapshot()
    assert before.isdisjoint(command_line.objects()), "what was sealed to it was deleted"
    assert public not in command_line.listed()
    command_line.reads_nothing(second)
    command_line.reads_nothing(second, machine={})  # nor with the writer key
    command_line.reads_all(command_line.first)
    command_line("key", "adopt", "--identity", second, machine=command_line.machine(), expect=7)
    command_line("key", "add", public, "--identity", second, expect=7)
    assert public not in command_line.listed()
    command_line("verify", "--read-data", "--identity", command_line.first)


def test_the_first_can_be_removed_by_the_second(command_line):
    command_line.snapshot()
    first = command_line("key", "show", "--identity", command_line.first).stdout.split()[0]
    second, public = command_line.new_key("second")
    command_line("key", "add", public, "--identity", command_line.first)
    assert "no admin" in command_line("key", "remove", first, "--identity", second, expect=7).stderr
    command_line("key", "add", public, "--admin", command_line.admins[-1], "--identity", command_line.first)
    command_line("key", "remove", first, "--identity", second)
    assert "not an admin" in command_line("key", "remove", command_line.admins[0], "--identity", second, expect=6).stderr
    assert list(command_line.listed()) == [public]
    command_line.snapshot()
    command_line.reads_all(second)
    command_line.reads_nothing(command_line.first)


def test_what_key_commands_refuse(command_line):
    command_line.snapshot()
    first = command_line("key", "show", "--identity", command_line.first).stdout.split()[0]
    second, public = command_line.new_key("second")
    third, stranger = command_line.new_key("third")
    objects = command_line.objects()
    refusals = [
        (("key", "remove", first, "--identity", command_line.first), 2, "recipient"),  # the last
        (("key", "remove", first, "--identity", second), 2, "recipient"),
        (("key", "remove", stranger, "--identity", command_line.first), 6, "key list"),
        (("key", "add", first, "--identity", command_line.first), 2, "already"),
        (("key", "add", public, "--identity", third), 7, "opens nothing"),
        (("key", "add", public), 7, "identity"),
        (("key", "add", public[:-1], "--identity", command_line.first), 2, "mistyped"),
        (("key", "add", "nonsense", "--identity", command_line.first), 2, "castore-pub-"),
        (("key", "new", command_line.first), 2, "never overwritten"),
        (("key", "show", "--identity", command_line.folder / "none"), 7, "none"),
    ]
    kept = command_line.first.read_bytes()
    for args, code, said in refusals:
        done = command_line(*args, expect=code)
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert done.stdout == ""
        assert list(command_line.listed()) == [first], args
    assert command_line.first.read_bytes() == kept
    assert command_line.objects() == objects
    command_line.reads_all(command_line.first)
    command_line("key", "add", public, "--identity", command_line.first)
    assert "identity that stays" in command_line("key", "remove", first, "--identity", command_line.first, expect=2).stderr


@pytest.mark.parametrize("left", ["the sessions are not sealed again", "the old ones are still there"])
def test_adding_and_removing_that_were_interrupted_are_finished_by_repeating(command_line, left):
    command_line.snapshot()
    second, public = command_line.new_key("second")

    def interrupt(*args):
        before = {path: (command_line.store / path).read_bytes() for path in command_line.objects()}
        command_line(*args)
        for path in command_line.objects():
            if path.parts[0] == "sessions" and path not in before and left.startswith("the sessions"):
                (command_line.store / path).unlink()
        for path, data in before.items():
            (command_line.store / path).write_bytes(data)

    command_line("key", "list")
    add = ("key", "add", public, "--identity", command_line.first)
    interrupt(*add)
    command_line(*add)
    command_line.reads_all(second)
    assert "already" in command_line(*add, expect=2).stderr
    remove = ("key", "remove", public, "--identity", command_line.first)
    interrupt(*remove)
    sealed_to_second = command_line.objects()
    command_line(*remove)
    assert len(command_line.objects()) < len(sealed_to_second)
    command_line.reads_nothing(second)
    command_line.reads_all(command_line.first)
    command_line(*remove, expect=6)


def test_a_secret_given_where_a_public_key_belongs_is_not_repeated(command_line):
    second, _ = command_line.new_key("second")
    done = command_line("key", "add", secret_of(second), "--identity", command_line.first, expect=2)
    assert "secret" in done.stderr
    assert secret_of(second) not in done.stdout + done.stderr
    mistyped = secret_of(second)[:-2]
    for env in ({"CASTORE_IDENTITY": mistyped}, {"CASTORE_IDENTITY_COMMAND": f"echo {mistyped}"}):
        command_line("key", "show", env=env, expect=7)


def test_a_passphrase_by_command(command_line):
    phrase = {"CASTORE_PASSPHRASE_COMMAND": "echo 'correct horse ß'"}
    locked, public = command_line.new_key("locked", "--passphrase", env=phrase)
    assert secret_of(locked).startswith("castore-locked-")
    assert mode(locked) == 0o600
    assert command_line("key", "show", "--identity", locked, env=phrase).stdout.split()[0] == public
    command_line("key", "add", public, "--identity", command_line.first)
    command_line.snapshot()
    text = command_line.versions[1][1]
    what = "web-service@1:dump-part"
    done = command_line("cat", what, "--identity", locked, *command_line.trust, env=phrase, machine=command_line.machine(), binary=True)
    assert done.stdout == text
    as_text = {**phrase, "CASTORE_IDENTITY": secret_of(locked)}
    assert command_line("cat", what, *command_line.trust, env=as_text, machine=command_line.machine(), binary=True).stdout == text
    wrong = {"CASTORE_PASSPHRASE_COMMAND": "echo 'wrong horse'"}
    done = command_line("cat", what, "--identity", locked, env=wrong, expect=7)
    assert "wrong passphrase" in done.stderr
    assert "CASTORE_PASSPHRASE_COMMAND" in command_line("cat", what, "--identity", locked, expect=7).stderr
    assert "no passphrase" in command_line("key", "show", "--identity", locked, env={"CASTORE_PASSPHRASE_COMMAND": "true"}, expect=7).stderr
    command_line("key", "show", "--identity", locked, env={"CASTORE_PASSPHRASE_COMMAND": "false"}, expect=7)
    assert not any("horse" in text for text in command_line.printed)


def test_init_with_a_passphrase(command_line):
    phrase = {"CASTORE_PASSPHRASE_COMMAND": "echo correct horse"}
    other, path = command_line.folder / "other", command_line.folder / "keys" / "other"
    command_line("init", other, "--identity", path, "--passphrase", env=phrase)
    assert secret_of(path).startswith("castore-locked-")
    assert mode(path) == 0o600
    assert not any("horse" in text for text in command_line.printed)


def test_init_uses_the_identity_of_the_environment(command_line):
    public = command_line("key", "show", "--identity", command_line.first).stdout.split()[0]
    for number, (way, env) in enumerate(ways(command_line.first).items()):
        made = json.loads(command_line("init", command_line.folder / f"store{number}", "--json", env=env).stdout)
        assert (made["recipients"], made["identity"]) == ([public], None), way
    failed = command_line("init", command_line.folder / "no", env={"CASTORE_IDENTITY_COMMAND": "false"}, expect=7)
    assert "CASTORE_IDENTITY_COMMAND" in failed.stderr
    assert not (command_line.folder / "no" / "config").exists()


def test_init_writes_a_new_identity_where_the_environment_says(command_line):
    path, store = command_line.folder / "keys" / "fresh", command_line.folder / "fresh"
    env = {"CASTORE_IDENTITY": str(path), "CASTORE_STORE": str(store)}
    made = json.loads(command_line("init", store, "--json", env=env).stdout)
    assert made["identity"] == str(path)
    assert mode(path) == 0o600
    (command_line.folder / "file").write_text("content")
    command_line("snapshot", "web", "--dump", f"d={command_line.folder / 'file'}", env=env)
    assert command_line("cat", "web@1:d", env=env).stdout == "content"


def ways(path):
    quoted = shlex.quote(str(path))
    return {
        "file": {"CASTORE_IDENTITY": str(path)},
        "text": {"CASTORE_IDENTITY": secret_of(path)},
        "text with space": {"CASTORE_IDENTITY": f" {secret_of(path)}\n"},
        "command": {"CASTORE_IDENTITY_COMMAND": f"cat {quoted}"},
        "both": {"CASTORE_IDENTITY": str(path), "CASTORE_IDENTITY_COMMAND": "false"},
        "empty": {"CASTORE_IDENTITY": "", "CASTORE_IDENTITY_COMMAND": f"cat {quoted}"},
    }


@pytest.mark.parametrize("way", ["file", "text", "text with space", "command", "both", "empty"])
def test_the_ways_to_give_an_identity(command_line, way):
    command_line.snapshot()
    env = ways(command_line.first)[way]
    expected = command_line("key", "show", "--identity", command_line.first).stdout
    assert command_line("key", "show", env=env).stdout == expected
    done = command_line("cat", "web-service@1:dump-part", env=env, machine=command_line.machine(), binary=True)
    assert done.stdout == command_line.versions[1][1]
    # The option wins over the environment.
    other, public = command_line.new_key("other")
    assert command_line("key", "show", "--identity", other, env=env).stdout.split()[0] == public
    command_line("cat", "web-service@1:dump-part", "--identity", other, env=env, expect=7)


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"CASTORE_IDENTITY": "/nowhere/identity"},
        {"CASTORE_IDENTITY": "castore-identity-"},
        {"CASTORE_IDENTITY": "/dev/null"},
        {"CASTORE_IDENTITY_COMMAND": "false"},
        {"CASTORE_IDENTITY_COMMAND": "echo nothing"},
        {"CASTORE_IDENTITY_COMMAND": "/nowhere/program"},
    ],
)
def test_an_identity_that_is_none_is_one_line_and_exit_7(command_line, env):
    command_line.snapshot()
    done = command_line("cat", "web-service@1:dump-part", env=env, expect=7)
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert "web-service" in command_line("log", env=env).stdout, "listing takes no identity"


def test_secret_files_are_for_their_owner_only_whatever_the_umask(castore, home, tmp_path):
    before = os.umask(0)
    try:
        command_line = CommandLine(castore, tmp_path)
        command_line("init", command_line.store)
        command_line.admins = []
        (identity,) = home.rglob("*.identity")
        (writer,) = home.rglob("writer.key")
        other, _ = command_line.new_key("other")
    finally:
        os.umask(before)
    for path in (identity, writer, other):
        assert mode(path) == 0o600
    for path in (identity.parent, writer.parent, other.parent):
        assert mode(path) == 0o700
    writer_secret = secret_of(writer)
    assert writer_secret.startswith("castore-writer-")
    command_line("key", "adopt")
    assert secret_of(writer) == writer_secret
    writer.unlink()
    command_line("key", "adopt", "--replace")
    assert mode(writer) == 0o600
    assert secret_of(writer) != writer_secret
    for text in command_line.printed:
        assert not SECRET_TEXT.search(text)


def test_no_command_prints_a_secret(command_line, home):
    second, public = command_line.new_key("second")
    command_line("key", "add", public, "--identity", command_line.first)
    command_line.snapshot()
    command_line("key", "list")
    command_line("key", "show", "--json", "--identity", second)
    command_line("key", "adopt", "--identity", command_line.first)
    command_line("key", "remove", public, "--identity", command_line.first)
    (writer,) = home.rglob("writer.key")
    for debug in ({}, {"CASTORE_DEBUG": "1"}):
        command_line("key", "show", env={"CASTORE_IDENTITY": secret_of(second)[:-3], **debug}, expect=7)
        command_line("key", "show", "--identity", writer, env=debug, expect=7)
        command_line("key", "add", secret_of(writer), "--identity", command_line.first, env=debug, expect=2)
        command_line("init", command_line.store, "--recipient", secret_of(second), env=debug, expect=2)
    everything = "".join(command_line.printed)
    for path in (command_line.first, second, writer):
        body = secret_of(path).split("-")[2][:120]  # of a writer key, before the admin keys that it trusts
        for start in range(0, len(body) - 12, 6):
            assert body[start : start + 12] not in everything


def test_nothing_of_what_is_stored_can_be_read_in_the_store(command_line):
    second, public = command_line.new_key("second")
    command_line("key", "add", public, "--label", "label-of-recipient", "--identity", command_line.first)
    command_line.snapshot()
    command_line.snapshot()
    files, dump = command_line.versions[2]
    needles = [
        b"web-service", b"revision-number", b"tree-part", b"dump-part", b"label-of-recipient",
        b"small-file", b"large-file", b"sub-folder", CHATTY.encode(), CHATTY.encode()[5:17],
        os.fsencode(command_line.folder), dump[:16], dump[50_000:50_016], files[Path("large-file")][:16],
        files[Path("large-file")][150_000:150_016], b"castore-pub", b"castore-identity", b"castore-writer",
    ]  # fmt: skip
    from castore.crypto import Identity, Recipient, WriterKey, key_text

    needles.append(Recipient.parse(public).key)
    for path in (command_line.first, second):
        identity = Identity.parse(path.read_text(), None)
        secret = key_text.read("castore-identity-", identity.text())
        assert secret is not None
        needles += [identity.recipient.key, secret]
    (writer,) = command_line.folder.rglob("writer.key")
    needles.append(WriterKey.parse(writer.read_text()).secret)
    looked_at = 0
    for path in command_line.objects():
        raw = (command_line.store / path).read_bytes()
        looked_at += len(raw)
        for needle in needles:
            assert needle not in raw, (needle, path)
            assert needle not in os.fsencode(path), (needle, path)
    assert looked_at > 700_000
    assert {path.parts[0] for path in command_line.objects()} == {"config", "generations", "packs", "sessions"}
    command_line.reads_all(second)
