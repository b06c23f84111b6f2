"""castore.toml: what is read, and where a complaint points."""

from __future__ import annotations

import os

import pytest

from castore import engines
from castore.engines.command import Command
from castore.errors import ConfigError, ProgramError, UsageError
from castore.services import config
from castore.services.config import PartSettings, Revision, TreePart
from castore.services.revision import current


@pytest.fixture
def read(tmp_path):
    def read(text, **options):
        path = tmp_path / "castore.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return config.load(str(path), **options)

    return read


FULL = """
store = "~/backups"

[service.drupal]
revision = { link = "/run/current-system" }

[service.drupal.parts.sites]
engine = "tree"
path = "~/sites/"
exclude = ["*/cache/"]
one-file-system = true
exclude-caches = true

[service.drupal.parts.db]
engine = "command"
dump = ["sh", "-c", "echo dump"]
restore = ["cat"]

[service."a.b"]
"""


def test_a_whole_file_is_read(read):
    settings = read(FULL, home="/home/ada")
    assert settings.store == "/home/ada/backups"
    assert settings.path.endswith("castore.toml")
    drupal = settings.service["drupal"]
    assert drupal.revision == Revision(link="/run/current-system")
    assert drupal.parts == {
        "sites": PartSettings(
            "tree",
            TreePart(path="/home/ada/sites", exclude=("*/cache/",), one_file_system=True, exclude_caches=True),
        ),
        "db": PartSettings("command", Command(program=("sh", "-c", "echo dump"), restore=("cat",))),
    }
    assert drupal.parts["sites"].engine == "tree"
    assert settings.service["a.b"].parts == {}


def test_limits_are_bytes_a_second(read):
    settings = read('limit-upload = "500K"\nlimit-download = "1.5 MB"\n')
    assert (settings.limit_upload, settings.limit_download) == (512_000, 1_500_000)
    assert read('limit-upload = "off"').limit_upload is None


def test_an_empty_file_has_nothing(read):
    assert read("") == config.Settings(path=read("").path)


PART = "[service.d.parts.p]\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("stor = 1", "stor: unknown key; known here: store, recipients, base-cache, "),
        ("store = 1", "store: expected text, got a number"),
        ('store = "backups"', "store: 'backups' is a relative path"),
        ('store = "~/backups"', "store: '~/backups' is a relative path, since no home"),
        *(
            (f"limit-{way} = {rate!r}", f"limit-{way}: bytes a second such as")
            for way in ("upload", "download")
            for rate in ("0", "0.1", "-1", "-5M", "", "fast", "1 PB", "1e3", "inf")
        ),
        ("limit-upload = 500", "limit-upload: expected text, got a number"),
        ('recipients = "x"', "recipients: expected a list, got text"),
        ("recipients = [1]", "recipients[0]: expected text, got a number"),
        ('recipients = ["castore-pub-x"]', "recipients[0]: "),
        ("service = 1", "service: expected a table, got a number"),
        ('[service.d]\nfollow = "x"', "service.d.follow: expected 'restore' or "),
        ("[service.d]\nfollow = 1", "service.d.follow: expected 'restore' or "),
        ("[service.d]\ntimeout = 2026-01-01", "service.d.timeout: expected a number, got a date or time"),
        ('[service.d]\nstop = ["a", ["b"]]', "service.d.stop[1]: expected text, got a list"),
        ("[service.d]\nschedule = {}", "service.d.schedule: expected text, got a table"),
        ("[service.d.keep]\nlast = 1.5", "service.d.keep.last: expected a whole number, got a number"),
        ("[service]\nok = {}\nbad = 1", "service.bad: expected a table, got a number"),
        ('[service."a/b"]', "service.\"a/b\": 'a/b' cannot name a service"),
        ("[service.d]\nkep = 1", "service.d.kep: unknown key; known here: revision, parts"),
        ("[service.d]\nkeep = 1", "service.d.keep: expected a table, got a number"),
        ("[service.d.keep]\nlast = -1", "service.d.keep.last: a number from 0 on was expected"),
        ("[service.d]\nkeep = {}", "service.d.keep: no rule in it keeps anything"),
        ("[service.d.keep]\nlast = 0\nper-revision = 0", "service.d.keep: no rule in it keeps anything"),
        ('[service.d.keep]\nwithin = "x"', "service.d.keep.within: a span like"),
        ('[service.d]\nschedule = "25:00"', "service.d.schedule: "),
        ('[service.d]\nstop = ["/no/such"]', "service.d.stop[0]: there is no program"),
        ("[service.d.revision]\npaths=[]", "service.d.revision.paths: it is empty"),
        ('[service.d.revision]\npaths=["x"]', "service.d.revision.paths[0]: 'x' is a relative path"),
        ('[service."a.b"]\nkep = 1', 'service."a.b".kep: unknown key'),
        ("[service.d]\nrevision = 1", "service.d.revision: expected a table, got a number"),
        ("[service.d]\nrevision = {}", "service.d.revision: exactly one of value, link, command and paths"),
        ('[service.d.revision]\nvalue="a"\nlink="/b"', "service.d.revision: exactly one of"),
        ('[service.d.revision]\nvalue=""', "service.d.revision.value: it is empty"),
        ('[service.d.revision]\nvalue=" x"', "service.d.revision.value: revision ' x' has white"),
        ('[service.d.revision]\nlink="x"', "service.d.revision.link: 'x' is a relative path"),
        ("[service.d.revision]\ncommand=[]", "service.d.revision.command: it is empty"),
        ('[service.d.revision]\nfile="x"', "service.d.revision.file: unknown key; known here: value,"),
        ("[service.d.parts]\np = 1", "service.d.parts.p: expected a table, got a number"),
        ('[service.d.parts."-"]', "service.d.parts.-: '-' cannot name a part"),
        (PART, 'service.d.parts.p.engine: this key is missing; "tree" or "file" or "command" or "postgresql"'),
        (PART + 'engine="x"', "service.d.parts.p.engine: there is no engine 'x'; known are "),
        (PART + "engine=[]", "service.d.parts.p.engine: "),
        (PART + 'engine="tree"', "service.d.parts.p.path: this key is missing"),
        (PART + 'engine="tree"\npath="x"', "service.d.parts.p.path: 'x' is a relative path"),
        (PART + 'engine="tree"\npath="/\\u0000"', "service.d.parts.p.path: '/\\x00' cannot be a path"),
        (PART + 'engine="tree"\npath="/x"\ndump=["a"]', "service.d.parts.p.dump: unknown key"),
        (PART + 'engine="tree"\npath="/x"\none_file_system=true', "service.d.parts.p.one_file_system: "),
        (
            PART + 'engine="tree"\npath="/x"\none-file-system=1',
            "service.d.parts.p.one-file-system: expected true or false, got a number",
        ),
        (PART + 'engine="tree"\npath="/x"\nexclude=["a",2]', "service.d.parts.p.exclude[1]: expected"),
        (PART + 'engine="command"\ndump="x"', "service.d.parts.p.dump: expected a list, got text"),
        (PART + 'engine="command"\ndump=[]', "service.d.parts.p.dump: it is empty"),
        (PART + 'engine="command"\ndump=[""]', "service.d.parts.p.dump: it is empty"),
        (PART + 'engine="command"\ndump=["cat","\\u0000"]', "service.d.parts.p.dump: an argument has a NUL byte"),
        (PART + 'engine="command"\ndump=["./x"]', "service.d.parts.p.dump[0]: './x' is a relative path"),
        (
            PART + 'engine="command"\ndump=["no-such-program"]',
            "service.d.parts.p.dump[0]: there is no program 'no-such-program' in PATH",
        ),
        (
            PART + 'engine="command"\ndump=["/no/such"]',
            "service.d.parts.p.dump[0]: there is no program '/no/such' there",
        ),
        (
            PART + 'engine="command"\ndump=["cat"]\nrestore=["/no/such"]',
            "service.d.parts.p.restore[0]: there is no program",
        ),
        ("a = ", "not TOML: "),
        (b"a = '\xff'", "not TOML: "),
    ],
)
def test_what_cannot_be_meant_is_refused_by_file_key_and_reason(read, tmp_path, text, complaint):
    with pytest.raises(ConfigError) as caught:
        read(text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/castore.toml: {complaint}"), message
    assert "\n" not in message
    assert "`" not in message


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="/no/such: cannot read this file: No such file"):
        config.load("/no/such")


def test_recipients_that_parse_are_kept(read):
    from castore.crypto.identity import Identity

    text = Identity.generate().recipient.text
    assert read(f'recipients = ["{text}"]').recipients == (text,)


def test_missing_programs_matter_only_to_who_runs_them(read):
    text = PART + 'engine="command"\ndump=["/no/such"]'
    assert read(text, programs=False).service["d"].parts["p"].source.program == ("/no/such",)


def test_a_revision_comes_from_its_source(tmp_path):
    assert current(None) is None
    assert current(Revision(value="r1")) == "r1"
    assert current(Revision(command=("sh", "-c", "echo; echo ' r2 '"))) == "r2"
    link = tmp_path / "system"
    link.symlink_to("r3")
    assert current(Revision(link=str(link))) == "r3"


def test_a_revision_link_is_followed_to_the_last_link(tmp_path):
    os.symlink("/gnu/store/abc-system", tmp_path / "system-12-link")
    os.symlink("system-12-link", tmp_path / "system")
    assert current(Revision(link=str(tmp_path / "system"))) == "/gnu/store/abc-system"


@pytest.mark.parametrize(
    ("script", "error", "match"),
    [
        ("exit 3", ProgramError, "sh failed: it exited with status 3"),
        ("true", ProgramError, "sh printed nothing"),
        (r"printf '\377'", ProgramError, "not UTF-8"),
        (r"printf 'a\nb'", UsageError, "what sh printed cannot be a revision"),
        ("echo latest", UsageError, "cannot be a revision"),
    ],
)
def test_a_program_that_gives_no_revision_is_an_error(script, error, match):
    with pytest.raises(error, match=match):
        current(Revision(command=("sh", "-c", script)))


def test_a_link_that_gives_no_revision_is_an_error(tmp_path):
    os.symlink("round", tmp_path / "round")
    os.symlink(b"r\xff", tmp_path / "bytes")
    (tmp_path / "file").touch()
    for name, match in [
        ("round", "in a circle"),
        ("bytes", "not UTF-8"),
        ("file", "it is not a symbolic link"),
        ("none", "No such file"),
    ]:
        with pytest.raises(UsageError, match=match):
            current(Revision(link=str(tmp_path / name)))


def test_another_package_adds_an_engine(read, tmp_path, monkeypatch):
    package = tmp_path / "site"
    (package / "other-1.0.dist-info").mkdir(parents=True)
    (package / "other-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (package / "other-1.0.dist-info" / "entry_points.txt").write_text("[castore.engines]\nnotes = other_engine:Notes\n")
    (package / "other_engine.py").write_text(
        "from castore.engines.file import File\n\n\nclass Notes(File, frozen=True):\n    colour: str = 'red'\n"
    )
    monkeypatch.syspath_prepend(str(package))
    part = read('[service.d.parts.p]\nengine="notes"\npath="/x"\ncolour="blue"').service["d"].parts["p"]
    assert (part.engine, part.source.path, part.source.colour) == ("notes", "/x", "blue")
    with pytest.raises(ConfigError, match=r"known are tree, file, .*, notes"):
        read('[service.d.parts.p]\nengine="none"')
    assert engines.name_of(type(part.source)) == "notes"


def test_an_engine_that_its_package_exports_elsewhere_has_its_name(tmp_path, monkeypatch):
    package = tmp_path / "site"
    (package / "exporting-1.0.dist-info").mkdir(parents=True)
    (package / "exporting-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: exporting\nVersion: 1.0\n")
    (package / "exporting-1.0.dist-info" / "entry_points.txt").write_text("[castore.engines]\ndiary = exporting:Diary\n")
    (package / "exporting").mkdir()
    (package / "exporting" / "__init__.py").write_text("from exporting.inner import Diary\n")
    (package / "exporting" / "inner.py").write_text("from castore.engines.file import File\n\n\nclass Diary(File, frozen=True):\n    pass\n")
    monkeypatch.syspath_prepend(str(package))
    assert engines.name_of(engines.find("diary")) == "diary"
    with pytest.raises(UsageError, match="int is not an installed engine"):
        engines.name_of(int)


@pytest.mark.parametrize("name", [one for one in engines.names() if one != "tree"])
def test_every_engine_is_found_by_its_name_and_by_its_class(name):
    assert engines.name_of(engines.find(name)) == name


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "-1", "0", "0.0", "1e300"])
@pytest.mark.parametrize("key", ["timeout", "health-timeout", "parts.db.timeout"])
def test_a_time_that_cannot_be_waited_for_is_refused(read, key, seconds):
    *table, name = ["service", "app", *key.split(".")]
    text = f"[{'.'.join(table)}]\n{name} = {seconds}\n"
    if "parts" in key:
        text += 'engine = "command"\ndump = ["true"]\n'
    with pytest.raises(ConfigError, match=f"service.app.{key}: seconds, a number above 0, were expected, not "):
        read(text)
    read(text.replace(f"= {seconds}", "= 0.5"))
    read(text.replace(f"= {seconds}", "= 86400"))
