"""Documents, code and tests are written in plain technical English: words of an earlier dialect are refused.

WORDS says what to write instead. What is justified is in EXCEPTIONS, with the reason.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.checkout import ROOT

CHECKED = [
    *("README.md", "CHANGELOG.md", "castore/docs/**/*.md", "tools/*.py", "tools/*.sh"),
    *("castore/**/*.py", "castore/**/*.[ch]", "tests/**/*.py", "tests/**/*.[ch]", "bench/*.py"),
]

WORDS = {
    r"(re)?told|tells?|telling": "report, say, encode as, pass to",
    r"behind": "after",
    r"in front of": "before",
    r"beside": "next to, alongside, concurrently with",
    r"anew": "again; rebuild, recreate",
    r"mend(s|ed|ing)?": "repair, fix",
    r"hurt|unhurt": "damaged; intact",
    r"rests? on|resting on": "depend on, reference",
    r"is gone|are gone|is no more(?! than)|when .{1,20} is gone": "is missing, was deleted",
    r"lets? go|letting go": "expire, delete",
    r"takes? back|taken back|tak(es|ing) .{1,30} back\b|puts? back|putting back|gives? back|giv(en|ing) back": "revert, restore, reclaim",
    r"alike": "similar",
    r"roll-backs?": "rollback (noun), roll back (verb)",
    r"a night|each night of|of a night|of each night": "per night",
    r"one that is none": "not a valid one",
    r"half of each": "inconsistent",
    r"state of before": "the previous state",
    r"\bhe\b|\bhim\b|\bhis\b": "they, them, their",
    r"safety generations?": "pre-rollback generation",
    r"leaves? a whole|stays? whole|whole again": "intact",
    r"(which|that|where it|it|they) (lies?|lay)\b|lies (in|on|next|below|above|there)": "is, is stored",
    r"stands (in|on|at|for)": "is, is stored; represents",
    r"what is there|was not there|is there already": "what exists; did not exist",
    r"who reads it|whoever": "name the role: the reader, the storage provider",
}

EXCEPTIONS = {
    'Literal["restore", "tell"] = "tell"': "a value of castore.toml",
    "BESIDE": "a constant of the SQLite worker",
    '`"tell"`': "a value of castore.toml",
    '"system", "roll-back"': "Guix's command",
    "guix system roll-back": "Guix's command",
    "[ $2 = roll-back ]": "Guix's command",
    'follow="tell"': "a value of castore.toml",
    "tests/unit/test_language.py": "it names the words",
}
"""A whole file, or a text that is removed before a line is checked; why."""


def files() -> list[Path]:
    found = {path for pattern in CHECKED for path in ROOT.glob(pattern)}
    return sorted(path for path in found if str(path.relative_to(ROOT)) not in EXCEPTIONS)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_old_dialect_is_not_written(path: Path) -> None:
    problems = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = text
        for exception in EXCEPTIONS:
            line = line.replace(exception, "")
        # A test's name is a sentence.
        line = re.sub(r"\btest_\w+", lambda name: name[0].replace("_", " "), line)
        for pattern, instead in WORDS.items():
            if match := re.search(rf"(?<![\w.-])(?:{pattern})(?![\w-])", line, re.IGNORECASE):
                problems.append(f"{path.relative_to(ROOT)}:{number}: {match[0]!r}: write {instead}")
    assert not problems, "\n" + "\n".join(problems)


def test_every_exception_is_used() -> None:
    texts = "".join(path.read_text(encoding="utf-8") for pattern in CHECKED for path in ROOT.glob(pattern))
    for exception, reason in EXCEPTIONS.items():
        assert exception in texts or (ROOT / exception).exists(), exception
        assert len(reason.split()) > 1, exception
