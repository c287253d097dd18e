"""The README and the documentation: every block of Python runs as it stands, every command is one that exists."""

import re
import shlex
from pathlib import Path

import pytest

from stompp_kernels.cli import _parser

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
WITH_CODE = [name for name, page in zip(NAMES, PAGES, strict=True) if BLOCK.search(page.read_text())]


QUICK = {"README.md", "docs/getting-started.md", "docs/your-model.md"}  # a stranger's way; the others train for longer


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in WITH_CODE]
)
def test_the_blocks_of_a_page_run_one_after_the_other(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    text = (ROOT / name).read_text()
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        exec(compile("\n" * line + found[1], str(ROOT / name), "exec"), names)


def test_the_pages_that_promise_code_have_some():
    assert {"README.md", "docs/getting-started.md", "docs/training.md", "docs/packed-networks.md"} <= set(WITH_CODE)


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_a_page_exist(name):
    for line in re.findall(r"^ *(?:\$ )?(stompp [^#|\n]*)", (ROOT / name).read_text(), re.MULTILINE):
        for command in line.split(";"):
            words = shlex.split(command)
            if words[1] not in ("COMMAND", "is"):
                _parser().parse_args(words[1:])


@pytest.mark.parametrize("name", NAMES)
def test_the_links_of_a_page_lead_to_files(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    example = BLOCK.search(text)
    assert example is not None
    assert text.count("\n", 0, example.end()) <= 40
    assert len(example[1].splitlines()) <= 14
