"""The options that commands share, and JSON."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner

from castore.cli.options import Percent, common, json_option, print_json


def test_a_command_gets_the_shared_options_first_and_its_own_by_name():
    seen = []

    @click.command()
    @click.argument("what")
    @json_option
    @common
    def command(context, what, as_json):
        """Do it."""
        seen.append((context.store, context.config, context.identity_file, what, as_json))

    CliRunner().invoke(command, ["x"], catch_exceptions=False)
    CliRunner().invoke(
        command,
        ["--store", "/s", "--config", "c", "--identity", "i", "--json", "y"],
        catch_exceptions=False,
    )
    assert seen == [(None, None, None, "x", False), ("/s", "c", "i", "y", True)]
    assert command.name == "command"
    assert command.help == "Do it."


def test_json_is_ascii_and_lists_have_a_line_an_element(capsys):
    for value in ({"a": "ü\U0001f600", "b": [1]}, [], [{"a": 1}, {"b": None}]):
        print_json(value)
        out = capsys.readouterr().out
        assert out.isascii()
        assert json.loads(out) == value
    assert out == '[\n{"a": 1},\n{"b": null}\n]\n'


@pytest.mark.parametrize(("given", "share"), [("5", 0.05), ("5%", 0.05), ("100%", 1.0), ("0.1", 0.001), ("0", 0.0)])
def test_a_share_has_a_percent_sign_or_not(given, share):
    assert Percent(zero=True).convert(given, None, None) == pytest.approx(share)


@pytest.mark.parametrize("given", ["", "x", "-1", "101", "nan", "0", "%"])
def test_what_is_no_share_is_refused(given):
    with pytest.raises(click.BadParameter, match="more than 0 and at most 100"):
        Percent().convert(given, None, None)
