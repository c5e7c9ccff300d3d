"""Options mean the same in all commands."""

from __future__ import annotations

import argparse
from importlib import import_module

import pytest

from ensemble.applications._options import Parser
from ensemble.cli import commands


@pytest.mark.parametrize("command", commands())
def test_lists_that_are_given_twice_add_up(command: str) -> None:
    parser = Parser("invert.py", "")
    import_module(f"ensemble.applications.{command}").arguments(parser)
    for action in parser._actions:
        if action.option_strings and action.nargs == "+":
            options = argparse.Namespace()
            for words in (["1"], ["2", "3"]):
                action(parser, options, words, action.option_strings[0])
            assert getattr(options, action.dest) == ["1", "2", "3"], action.option_strings
