"""The check of prose that `make lint` runs: the repository passes it, and what it is for does not."""

import argparse
from pathlib import Path

import check_prose
import pytest

from stompp_kernels.cli import _parser

ROOT = Path(__file__).parents[1]

FRAGMENTS = {
    "comment.py": "x = 1\n# Of what x is.\n",
    "docstring.py": 'def f(x):\n    """That x fits."""\n',
    "module.py": '"""Of two kinds."""\n',
    "help.py": 'parser.add_argument("--seconds", help="of each case")\n',
    "formatted.py": 'parser.add_argument("--seconds", help=f"by custom {x}")\n',
    "default.py": 'parser.add_argument("--forms", help="default: all")\n',
    "comment.cpp": "int x;\n// Of zeros any.\n",
}
SENTENCES = {
    "comment.py": "# What a sum is made\n# Of course it goes on here.\nx = 1  # of both\n",
    "docstring.py": 'def f(x):\n    """Checks that x fits."""\n',
    "subject.py": "# That is exact.\n",
    "help.py": 'parser.add_argument("--seconds", help="seconds to measure each case")\n',
    "comment.cpp": "// A sum\n// Of course it goes on here.\nint x;  // of both\n",
}


def written(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", FRAGMENTS)
def test_what_begins_as_the_rest_of_a_sentence_is_found(name, tmp_path):
    assert len(list(check_prose.problems_in(written(tmp_path, name, FRAGMENTS[name])))) == 1


@pytest.mark.parametrize("name", SENTENCES)
def test_sentences_pass(name, tmp_path):
    assert list(check_prose.problems_in(written(tmp_path, name, SENTENCES[name]))) == []


def test_the_repository_passes():
    paths = check_prose.files()
    assert len(paths) > 150
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}" for path in paths for line, text in check_prose.problems_in(path)
    ]
    assert found == []


def test_the_command_ends_with_1_where_it_finds_something(tmp_path, monkeypatch, capsys):
    path = written(tmp_path, "help.py", FRAGMENTS["help.py"])
    monkeypatch.setattr("sys.argv", ["check_prose.py", str(path)])
    assert check_prose.main() == 1
    assert "help.py:1" in capsys.readouterr().out


def test_every_argument_of_every_command_has_a_help_text():
    (commands,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert len(commands.choices) >= 8
    for name, parser in commands.choices.items():
        assert [action.dest for action in parser._actions if not action.help] == [], name
    assert all(choice.help for choice in commands._choices_actions)
