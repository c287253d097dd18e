"""scripts/try_arm.py: it says what it misses, and what it fetches goes into the build folder alone."""

import subprocess
from pathlib import Path

import pytest
import try_arm


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(try_arm, "FOLDER", tmp_path / "arm")
    return tmp_path / "arm"


def answers(monkeypatch, *failing):
    """Notes each command with the text of apt's configuration, in the place of running it."""
    calls = []

    def run(command, env=None, **options):
        command = [str(word) for word in command]
        config = env and env.get("APT_CONFIG")
        calls.append((command, Path(config).read_text() if config else ""))
        failed = any(word in command for word in failing)
        return subprocess.CompletedProcess(command, int(failed), "", "Reading\nE: no arm64 here" if failed else "")

    monkeypatch.setattr(try_arm.subprocess, "run", run)
    return calls


@pytest.mark.parametrize(("tool", "package"), try_arm.TOOLS.items())
def test_a_tool_that_is_missing_is_named_with_its_package(monkeypatch, tool, package):
    monkeypatch.setattr(try_arm.shutil, "which", lambda name: None if name == tool else name)
    with pytest.raises(SystemExit, match=f"error: {tool} is not on PATH; .* the package {package} has it"):
        try_arm.check_tools()


def test_what_cannot_be_fetched_is_named_with_the_words_of_the_tool(monkeypatch, folder):
    answers(monkeypatch, "update")
    with pytest.raises(SystemExit, match=r"error: Debian's list of packages for arm64 could not be fetched: apt-get"):
        try_arm.unpack_debian(folder / "debian")
    answers(monkeypatch, "torch==2.10.0")
    with pytest.raises(SystemExit, match=r"torch 2\.10\.0 for Python 3\.11 .* says 'E: no arm64 here'"):
        try_arm.install_torch(folder / "site", "3.11", "2.10.0")
    assert list(folder.iterdir()) == []


def test_the_state_of_this_system_is_neither_read_nor_written(monkeypatch, folder):
    calls = answers(monkeypatch)
    try_arm.unpack_debian(folder / "debian")
    assert (folder / "debian" / "lib").is_symlink()
    assert [command[0] for command, _ in calls] == ["apt-get", "apt-get"]
    for _, config in calls:
        paths = [line.split('"')[1] for line in config.splitlines() if line.startswith("Dir::")]
        assert len(paths) == 3
        assert all(path.startswith(str(folder)) for path in paths)


def test_packages_are_those_for_arm_and_for_the_unpacked_python(monkeypatch, folder):
    calls = answers(monkeypatch)
    monkeypatch.setattr(try_arm.Path, "rename", lambda path, target: target.mkdir(parents=True))
    folder.mkdir()
    try_arm.install_torch(folder / "site", "3.11", "2.10.0")
    try_arm.install_torch(folder / "site", "3.11", "2.10.0")
    [torch, others] = [command for command, _ in calls]
    for command in (torch, others):
        assert command[command.index("--python-version") + 1] == "3.11"
        assert command[command.index("--platform") + 1] == "manylinux_2_28_aarch64"
        assert command[command.index("--only-binary") + 1] == ":all:"
    assert "--no-deps" in torch
    assert "numpy" in others
