"""The commands of the README's section about the examples are what the scripts take."""

import re
import shlex
import sys

import pytest

from tests.examples.scripts import EXAMPLES, functions
from tests.integration.processes import ROOT
from tests.torchvision_ops import torchvision_or_skip

torchvision_or_skip("torchvision")
pytestmark = pytest.mark.dali

SECTION = re.search(r"^## Examples$(.*?)^## ", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)[1]
SHELL = "".join(re.findall(r"^```sh$(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL))
COMMANDS = [shlex.split(line, comments=True) for line in SHELL.splitlines() if "examples/" in line]


def test_every_script_is_shown():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {name for _, name, _ in map(parts, COMMANDS)}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_arguments_parse(command, monkeypatch):
    _, name, arguments = parts(command)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    assert str(functions(name)["parse_arguments"]().data) == "DATA"


def parts(command):
    """Return what starts a script, the script's name, and its arguments."""
    (at,) = (i for i, word in enumerate(command) if word.startswith("examples/"))
    return command[:at], command[at].removeprefix("examples/"), command[at + 1 :]


def test_options_in_the_text_are_those_of_a_script():
    scripts = "".join(path.read_text() for path in EXAMPLES.glob("*.py"))
    options = re.findall(r"`(--[a-z-]+)", SECTION)
    assert options
    for option in options:
        assert f'"{option.replace("--no-", "--")}"' in scripts
