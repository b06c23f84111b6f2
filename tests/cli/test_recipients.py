"""Identities and recipients through the command line, and what a store tells to who has no key."""

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


class Desk:
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
        return {one["recipient"]: one["label"] for one in json.loads(self("key", "list", "--json").stdout)}

    def objects(self):
        return sorted(path.relative_to(self.store) for path in self.store.rglob("*") if path.is_file())


@pytest.fixture
def desk(castore, tmp_path):
    made = Desk(castore, tmp_path).init()
    yield made
    for text in made.printed:
        assert not SECRET_TEXT.search(text), "a secret was printed"


def secret_of(path):
    (line,) = [line for line in Path(path).read_text().splitlines() if not line.startswith("#")]
    return line


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_an_added_identity_alone_restores_old_and_new_on_a_fresh_machine(desk):
    desk.snapshot()
    packs = {path: (desk.store / path).read_bytes() for path in desk.objects() if path.parts[0] == "packs"}
    second, public = desk.new_key("second")
    assert re.fullmatch(r"castore-pub-[a-z2-7]+", public)
    desk.reads_nothing(second)
    done = desk("key", "add", public, "--label", "off site", "--identity", desk.first)
    assert public in done.stdout
    for path, data in packs.items():
        assert (desk.store / path).read_bytes() == data, "adding rewrites no data"
    desk.snapshot()
    assert desk.listed()[public] == "off site"
    assert len(desk.listed()) == 2
    desk.reads_all(second)
    desk.reads_all(desk.first)


def test_the_second_identity_works_when_the_first_and_its_machine_are_gone(desk):
    desk.snapshot()
    second, public = desk.new_key("second")
    desk("key", "add", public, "--admin", desk.admins[-1], "--identity", desk.first)
    desk.first.unlink()
    other = desk.machine()
    done = desk("key", "adopt", "--host", "other", "--identity", second, machine=other, expect=7)
    assert f"--trust-admin {desk.admins[0]}" in done.stderr
    desk("key", "adopt", "--host", "other", "--identity", second, *desk.trust, machine=other)
    (key,) = Path(other["HOME"]).rglob("writer.key")
    assert mode(key) == 0o600
    assert mode(key.parent) == 0o700
    (desk.folder / "more").write_text("from elsewhere")
    args = ("snapshot", "web-service", "--dump", f"dump-part={desk.folder / 'more'}")
    desk(*args, machine=other)
    args = ("cat", "web-service@latest:dump-part", "--host", "other", "--identity", second, *desk.trust)
    done = desk(*args, machine=desk.machine())
    assert done.stdout == "from elsewhere"
    desk("snapshot", "web-service", "--dump", "x=/dev/null", machine=desk.machine(), expect=7)


def test_a_removed_identity_opens_nothing_any_more(desk):
    desk.snapshot()
    second, public = desk.new_key("second")
    desk("key", "add", public, "--identity", desk.first)
    desk.snapshot()
    desk.reads_all(second)
    before = {path for path in desk.objects() if path.parts[0] in {"sessions", "config"}}
    desk("key", "remove", public, "--identity", desk.first)
    desk.snapshot()
    assert before.isdisjoint(desk.objects()), "what was sealed to it is gone"
    assert public not in desk.listed()
    desk.reads_nothing(second)
    desk.reads_nothing(second, machine={})  # nor with the writer key
    desk.reads_all(desk.first)
    desk("key", "adopt", "--identity", second, machine=desk.machine(), expect=7)
    desk("key", "add", public, "--identity", second, expect=7)
    assert public not in desk.listed()
    desk("verify", "--read-data", "--identity", desk.first)


def test_the_first_can_be_removed_by_the_second(desk):
    desk.snapshot()
    first = desk("key", "show", "--identity", desk.first).stdout.split()[0]
    second, public = desk.new_key("second")
    desk("key", "add", public, "--identity", desk.first)
    assert "no admin" in desk("key", "remove", first, "--identity", second, expect=7).stderr
    desk("key", "add", public, "--admin", desk.admins[-1], "--identity", desk.first)
    desk("key", "remove", first, "--identity", second)
    assert "not an admin" in desk("key", "remove", desk.admins[0], "--identity", second, expect=6).stderr
    assert list(desk.listed()) == [public]
    desk.snapshot()
    desk.reads_all(second)
    desk.reads_nothing(desk.first)


def test_what_key_commands_refuse(desk):
    desk.snapshot()
    first = desk("key", "show", "--identity", desk.first).stdout.split()[0]
    second, public = desk.new_key("second")
    third, stranger = desk.new_key("third")
    objects = desk.objects()
    refusals = [
        (("key", "remove", first, "--identity", desk.first), 2, "recipient"),  # the last
        (("key", "remove", first, "--identity", second), 2, "recipient"),
        (("key", "remove", stranger, "--identity", desk.first), 6, "key list"),
        (("key", "add", first, "--identity", desk.first), 2, "already"),
        (("key", "add", public, "--identity", third), 7, "opens nothing"),
        (("key", "add", public), 7, "identity"),
        (("key", "add", public[:-1], "--identity", desk.first), 2, "mistyped"),
        (("key", "add", "nonsense", "--identity", desk.first), 2, "castore-pub-"),
        (("key", "new", desk.first), 2, "never overwritten"),
        (("key", "show", "--identity", desk.folder / "none"), 7, "none"),
    ]
    kept = desk.first.read_bytes()
    for args, code, said in refusals:
        done = desk(*args, expect=code)
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert done.stdout == ""
        assert list(desk.listed()) == [first], args
    assert desk.first.read_bytes() == kept
    assert desk.objects() == objects
    desk.reads_all(desk.first)
    desk("key", "add", public, "--identity", desk.first)
    assert "identity that stays" in desk("key", "remove", first, "--identity", desk.first, expect=2).stderr


@pytest.mark.parametrize("left", ["the sessions are not sealed anew", "the old ones are still there"])
def test_adding_and_removing_that_were_interrupted_are_finished_by_repeating(desk, left):
    desk.snapshot()
    second, public = desk.new_key("second")

    def interrupt(*args):
        before = {path: (desk.store / path).read_bytes() for path in desk.objects()}
        desk(*args)
        for path in desk.objects():
            if path.parts[0] == "sessions" and path not in before and left.startswith("the sessions"):
                (desk.store / path).unlink()
        for path, data in before.items():
            (desk.store / path).write_bytes(data)

    desk("key", "list")
    add = ("key", "add", public, "--identity", desk.first)
    interrupt(*add)
    desk(*add)
    desk.reads_all(second)
    assert "already" in desk(*add, expect=2).stderr
    remove = ("key", "remove", public, "--identity", desk.first)
    interrupt(*remove)
    sealed_to_second = desk.objects()
    desk(*remove)
    assert len(desk.objects()) < len(sealed_to_second)
    desk.reads_nothing(second)
    desk.reads_all(desk.first)
    desk(*remove, expect=6)


def test_a_secret_given_where_a_public_key_belongs_is_not_repeated(desk):
    second, _ = desk.new_key("second")
    done = desk("key", "add", secret_of(second), "--identity", desk.first, expect=2)
    assert "secret" in done.stderr
    assert secret_of(second) not in done.stdout + done.stderr
    mistyped = secret_of(second)[:-2]
    for env in ({"CASTORE_IDENTITY": mistyped}, {"CASTORE_IDENTITY_COMMAND": f"echo {mistyped}"}):
        desk("key", "show", env=env, expect=7)


def test_a_passphrase_by_command(desk):
    phrase = {"CASTORE_PASSPHRASE_COMMAND": "echo 'correct horse ß'"}
    locked, public = desk.new_key("locked", "--passphrase", env=phrase)
    assert secret_of(locked).startswith("castore-locked-")
    assert mode(locked) == 0o600
    assert desk("key", "show", "--identity", locked, env=phrase).stdout.split()[0] == public
    desk("key", "add", public, "--identity", desk.first)
    desk.snapshot()
    text = desk.versions[1][1]
    what = "web-service@1:dump-part"
    done = desk("cat", what, "--identity", locked, *desk.trust, env=phrase, machine=desk.machine(), binary=True)
    assert done.stdout == text
    as_text = {**phrase, "CASTORE_IDENTITY": secret_of(locked)}
    assert desk("cat", what, *desk.trust, env=as_text, machine=desk.machine(), binary=True).stdout == text
    wrong = {"CASTORE_PASSPHRASE_COMMAND": "echo 'wrong horse'"}
    done = desk("cat", what, "--identity", locked, env=wrong, expect=7)
    assert "wrong passphrase" in done.stderr
    assert "CASTORE_PASSPHRASE_COMMAND" in desk("cat", what, "--identity", locked, expect=7).stderr
    assert "no passphrase" in desk("key", "show", "--identity", locked, env={"CASTORE_PASSPHRASE_COMMAND": "true"}, expect=7).stderr
    desk("key", "show", "--identity", locked, env={"CASTORE_PASSPHRASE_COMMAND": "false"}, expect=7)
    assert not any("horse" in text for text in desk.printed)


def test_init_with_a_passphrase(desk):
    phrase = {"CASTORE_PASSPHRASE_COMMAND": "echo correct horse"}
    other, path = desk.folder / "other", desk.folder / "keys" / "other"
    desk("init", other, "--identity", path, "--passphrase", env=phrase)
    assert secret_of(path).startswith("castore-locked-")
    assert mode(path) == 0o600
    assert not any("horse" in text for text in desk.printed)


def test_init_uses_the_identity_of_the_environment(desk):
    public = desk("key", "show", "--identity", desk.first).stdout.split()[0]
    for number, (way, env) in enumerate(ways(desk.first).items()):
        made = json.loads(desk("init", desk.folder / f"store{number}", "--json", env=env).stdout)
        assert (made["recipients"], made["identity"]) == ([public], None), way
    failed = desk("init", desk.folder / "no", env={"CASTORE_IDENTITY_COMMAND": "false"}, expect=7)
    assert "CASTORE_IDENTITY_COMMAND" in failed.stderr
    assert not (desk.folder / "no" / "config").exists()


def test_init_writes_a_new_identity_where_the_environment_says(desk):
    path, store = desk.folder / "keys" / "fresh", desk.folder / "fresh"
    env = {"CASTORE_IDENTITY": str(path), "CASTORE_STORE": str(store)}
    made = json.loads(desk("init", store, "--json", env=env).stdout)
    assert made["identity"] == str(path)
    assert mode(path) == 0o600
    (desk.folder / "file").write_text("content")
    desk("snapshot", "web", "--dump", f"d={desk.folder / 'file'}", env=env)
    assert desk("cat", "web@1:d", env=env).stdout == "content"


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
def test_the_ways_to_give_an_identity(desk, way):
    desk.snapshot()
    env = ways(desk.first)[way]
    expected = desk("key", "show", "--identity", desk.first).stdout
    assert desk("key", "show", env=env).stdout == expected
    done = desk("cat", "web-service@1:dump-part", env=env, machine=desk.machine(), binary=True)
    assert done.stdout == desk.versions[1][1]
    # The option wins over the environment.
    other, public = desk.new_key("other")
    assert desk("key", "show", "--identity", other, env=env).stdout.split()[0] == public
    desk("cat", "web-service@1:dump-part", "--identity", other, env=env, expect=7)


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
def test_an_identity_that_is_none_is_one_line_and_exit_7(desk, env):
    desk.snapshot()
    done = desk("cat", "web-service@1:dump-part", env=env, expect=7)
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert "web-service" in desk("log", env=env).stdout, "listing takes no identity"


def test_secret_files_are_for_their_owner_only_whatever_the_umask(castore, home, tmp_path):
    before = os.umask(0)
    try:
        desk = Desk(castore, tmp_path)
        desk("init", desk.store)
        desk.admins = []
        (identity,) = home.rglob("*.identity")
        (writer,) = home.rglob("writer.key")
        other, _ = desk.new_key("other")
    finally:
        os.umask(before)
    for path in (identity, writer, other):
        assert mode(path) == 0o600
    for path in (identity.parent, writer.parent, other.parent):
        assert mode(path) == 0o700
    writer_secret = secret_of(writer)
    assert writer_secret.startswith("castore-writer-")
    desk("key", "adopt")
    assert secret_of(writer) == writer_secret
    writer.unlink()
    desk("key", "adopt", "--replace")
    assert mode(writer) == 0o600
    assert secret_of(writer) != writer_secret
    for text in desk.printed:
        assert not SECRET_TEXT.search(text)


def test_no_command_prints_a_secret(desk, home):
    second, public = desk.new_key("second")
    desk("key", "add", public, "--identity", desk.first)
    desk.snapshot()
    desk("key", "list")
    desk("key", "show", "--json", "--identity", second)
    desk("key", "adopt", "--identity", desk.first)
    desk("key", "remove", public, "--identity", desk.first)
    (writer,) = home.rglob("writer.key")
    for debug in ({}, {"CASTORE_DEBUG": "1"}):
        desk("key", "show", env={"CASTORE_IDENTITY": secret_of(second)[:-3], **debug}, expect=7)
        desk("key", "show", "--identity", writer, env=debug, expect=7)
        desk("key", "add", secret_of(writer), "--identity", desk.first, env=debug, expect=2)
        desk("init", desk.store, "--recipient", secret_of(second), env=debug, expect=2)
    everything = "".join(desk.printed)
    for path in (desk.first, second, writer):
        body = secret_of(path).split("-")[2][:120]  # of a writer key, before the admin keys that it pins
        for start in range(0, len(body) - 12, 6):
            assert body[start : start + 12] not in everything


def test_nothing_of_what_is_stored_can_be_read_in_the_store(desk):
    second, public = desk.new_key("second")
    desk("key", "add", public, "--label", "label-of-recipient", "--identity", desk.first)
    desk.snapshot()
    desk.snapshot()
    files, dump = desk.versions[2]
    needles = [
        b"web-service", b"revision-number", b"tree-part", b"dump-part", b"label-of-recipient",
        b"small-file", b"large-file", b"sub-folder", CHATTY.encode(), CHATTY.encode()[5:17],
        os.fsencode(desk.folder), dump[:16], dump[50_000:50_016], files[Path("large-file")][:16],
        files[Path("large-file")][150_000:150_016], b"castore-pub", b"castore-identity", b"castore-writer",
    ]  # fmt: skip
    from castore.crypto import Identity, Recipient, WriterKey

    needles.append(Recipient.parse(public).key)
    for path in (desk.first, second):
        identity = Identity.parse(path.read_text(), None)
        needles += [identity.recipient.key, bytes(identity._secret)]
    (writer,) = desk.folder.rglob("writer.key")
    needles.append(WriterKey.parse(writer.read_text()).secret)
    looked_at = 0
    for path in desk.objects():
        raw = (desk.store / path).read_bytes()
        looked_at += len(raw)
        for needle in needles:
            assert needle not in raw, (needle, path)
            assert needle not in os.fsencode(path), (needle, path)
    assert looked_at > 700_000
    assert {path.parts[0] for path in desk.objects()} == {"config", "generations", "packs", "sessions"}
    desk.reads_all(second)
