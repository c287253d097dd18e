"""The folders of csrc depend on each other in one direction, and each holds what its name says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAMILIES = ("product", "float_conv", "binary_weight", "signs", "masks")
INSTRUCTION_SETS = ("scalar", "avx2", "avx512", "amx", "neon", "wasm")
# AMX multiplies tiles, and does everything else as AVX-512 does.
BUILDS_ON = {"amx": ("avx512",)}

INCLUDE = re.compile(r'^\s*#\s*include\s*["<]((?:core|cuda|torch|runtime)/[^">]+)[">]', re.MULTILINE)


def includes(csrc):
    """(file, what it includes) for each include of a file of csrc or of torch's, both relative to csrc."""
    for path in sorted(csrc.rglob("*")):
        if path.suffix in (".h", ".cpp", ".cuh", ".cu"):
            for target in INCLUDE.findall(path.read_text()):
                yield path.relative_to(csrc).as_posix(), target


def room(path):
    """The part of csrc that a file belongs to: torch, cuda, or one of the core's rooms."""
    parts = path.split("/")
    return parts[0] if parts[0] != "core" else f"core/{parts[1]}"


def instruction_set(path):
    parts = path.split("/")
    return parts[2] if parts[:2] == ["core", "isa"] and len(parts) > 3 else None


def is_allowed(source, target):
    own, other = room(source), room(target)
    if own == "torch" or own == other == "cuda":
        return True
    if own in ("numpy", "runtime"):  # the core alone: they use it where there is no torch
        return other == own or other.startswith("core/")
    if own == "cuda":  # shapes and epilogues mean the same on every device
        return other in ("core/base", "core/product")
    if own == "core/isa" and other.startswith("core/"):
        mine, its = instruction_set(source), instruction_set(target)
        lists_all = source == "core/isa/dispatch.cpp"
        return its is None or its == mine or lists_all or its in BUILDS_ON.get(mine, ())
    above = ("core/isa", "torch", "cuda", "runtime")
    return other == own or (own != "core/base" and other not in above)


def edges_that_run_up(csrc):
    return [f"{source} includes {target}" for source, target in includes(csrc) if not is_allowed(source, target)]


def cycle(edges):
    """Families that include each other, in the order of a way around; empty where there is none."""

    def walk(node, way):
        if node in way:
            return [*way[way.index(node) :], node]
        return next((found for target in edges.get(node, ()) if (found := walk(target, [*way, node]))), [])

    return next((found for node in edges if (found := walk(node, []))), [])


def test_no_include_runs_back_up():
    assert edges_that_run_up(ROOT / "csrc") == []


def test_families_include_each_other_without_a_cycle():
    edges: dict[str, set[str]] = {}
    for source, target in includes(ROOT / "csrc"):
        if source.startswith("core/") and target.startswith("core/") and room(source) != room(target):
            edges.setdefault(room(source), set()).add(room(target))
    assert "core/product" in edges["core/float_conv"]
    assert cycle(edges) == []


def test_the_core_has_these_rooms_and_no_others():
    core = ROOT / "csrc" / "core"
    assert {path.name for path in core.iterdir()} == {"base", *FAMILIES, "isa"}
    assert {path.name for path in (core / "isa").iterdir() if path.is_dir()} == set(INSTRUCTION_SETS)


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_a_folder_of_an_instruction_set_defines_only_its_own(name):
    for path in (ROOT / "csrc" / "core" / "isa" / name).iterdir():
        namespaces = set(re.findall(r"^namespace (\w+) \{", path.read_text(), re.MULTILINE))
        assert namespaces == {"stompp", name}, path.name


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_declares_what_it_needs_from_an_instruction_set(family):
    text = (ROOT / "csrc" / "core" / family / "kernels.h").read_text()
    tables = re.findall(r"^struct (\w+Kernels) \{", text, re.MULTILINE)
    assert tables
    for table in tables:
        assert re.search(rf"^const {table}\* active_\w+_kernels\(\);$", text, re.MULTILINE), table


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("core/base/bits.h", "core/product/epilogue.h"),
        ("core/product/bgemm.cpp", "core/isa/dispatch.h"),
        ("core/masks/kernels.h", "torch/tensors.h"),
        ("core/signs/pack.cpp", "cuda/device.h"),
        ("core/isa/avx2/avx2.h", "core/isa/avx512/avx512.h"),
        ("core/isa/implementation.h", "core/isa/scalar/scalar.h"),
        ("core/isa/dispatch.cpp", "torch/tensors.h"),
        ("numpy/core.cpp", "torch/tensors.h"),
        ("runtime/api.cpp", "torch/tensors.h"),
        ("core/product/bgemm.cpp", "runtime/stompp.h"),
        ("cuda/bgemm/bgemm.cu", "torch/tensors.h"),
        ("cuda/bgemm/bgemm.cu", "core/isa/dispatch.h"),
    ],
)
def test_an_edge_that_runs_up_is_found(tmp_path, source, target):
    path = tmp_path / source
    path.parent.mkdir(parents=True)
    path.write_text(f'#include "{target}"\n')
    assert edges_that_run_up(tmp_path) == [f"{source} includes {target}"]


def test_a_cycle_is_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
