"""Which part of the package may import which: data and imports flow one way, inside functions too."""

import ast
import importlib
import pkgutil
import sys
from pathlib import Path

import pytest
from processes import run_python

import stompp_kernels

PACKAGE = Path(stompp_kernels.__file__).parent
NAME = "stompp_kernels"

# Each part may import what stands on a later line, and itself. Parts of one line import nothing of each other.
LEVELS = (
    ("__main__",),
    ("cli",),
    (NAME,),  # the package's own __init__.py, which joins the parts that do not know each other
    ("bench",),
    ("training",),
    ("training.callbacks", "training.data"),
    ("installation",),
    ("bench.machine", "bench.turns"),  # what training measures with too
    ("report",),
    ("conversion",),
    ("conversion.explain", "conversion.files"),
    ("conversion.packing", "conversion.prepare"),
    ("conversion.profile", "conversion.tracing", "conversion.verify", "conversion.verify_fast"),
    ("conversion.input_notes", "conversion.sign_notes"),
    ("progression", "models"),
    ("device", "nn"),
    ("ops", "ops.triton"),
    ("native", "named", "table", "terminal", "files", "default_dtype", "exit_status"),
    ("core", "cpu_library", "cuda_library", "missing_library", "signals", "torch_release"),
    ("_core",),  # compiled, where it was asked for
)
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}

# The ops use their Triton kernels where there are some, and these the checks and the oracle of the ops.
BOTH_WAYS = {("ops.triton", "ops"), ("ops", "ops.triton")}

# Models stand below conversion, and yet it knows none of them: they register what it needs.
NEVER = {("conversion", "models")}

# The folders of each level. Others are a new idea: they need a place in LEVELS, and in docs.
ROOMS = {
    "": {"bench", "conversion", "models", "nn", "ops", "progression", "report", "training"},
    "conversion": {"files", "packing", "prepare"},
    "ops": {"reference", "triton"},
    "training": {"callbacks", "data", "report"},
}


def modules():
    """Name -> file of every module of the package, without the package's own name in front."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def part_of(module):
    """The longest name in LEVELS that a module lies in."""
    names = module.split(".") if module else []
    for end in range(len(names), 0, -1):
        if ".".join(names[:end]) in LEVEL:
            return ".".join(names[:end])
    return NAME if not module else None


def imports(source, known):
    """Modules of the package that a source imports, at its top or in a function, by statement or by name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix(f"{NAME}.") in known else node.module for name in inside]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
        else:
            continue
        for name in names:
            if name.split(".")[0] == NAME:
                yield name.removeprefix(NAME).removeprefix(".")


def edges_that_run_up(sources):
    """(module, imported module) of every import that runs back up, or across a level."""
    known, wrong = modules(), []
    for module, source in sources.items():
        for imported in imports(source, known):
            own, other = part_of(module), part_of(imported)
            down = own is not None and other is not None and (own == other or LEVEL[own] < LEVEL[other])
            rooms = module.split(".")[0], imported.split(".")[0]
            if rooms in NEVER or (not down and (own, other) not in BOTH_WAYS):
                wrong.append((module or NAME, imported or NAME))
    return wrong


def test_every_module_has_a_level():
    assert [module for module in modules() if part_of(module) is None] == []


def test_no_import_runs_back_up():
    sources = {module: path.read_text(encoding="utf-8") for module, path in modules().items()}
    assert edges_that_run_up(sources) == []


@pytest.mark.parametrize(
    ("module", "line", "imported"),
    [
        ("models.mlp", "from stompp_kernels.conversion import convert", "conversion"),
        ("conversion.files.modules", "def f():\n    from stompp_kernels.models.bert import tokens", "models.bert"),
        (
            "conversion.packing.twins",
            "from stompp_kernels.conversion.prepare import layers",
            "conversion.prepare.layers",
        ),
        ("nn.packed", "import stompp_kernels", NAME),
        ("ops.pack", "import stompp_kernels.nn.masked", "nn.masked"),
        ("ops.pack", "import importlib\nimportlib.import_module('stompp_kernels.nn')", "nn"),
        ("models.mlp", "from stompp_kernels import progression", "progression"),
    ],
)
def test_an_import_that_runs_back_up_is_found(module, line, imported):
    assert edges_that_run_up({module: line}) == [(module, imported)]


def test_the_rooms_are_the_design_s():
    folders = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")} - {Path()}
    for folder in folders:
        parent = "" if folder.parent == Path() else folder.parent.as_posix().replace("/", ".")
        assert folder.name in ROOMS.get(parent, set()), f"{folder} is no room of {parent or NAME}"


def test_functions_keep_their_names_beside_rooms_and_files_of_the_same_name():
    for module in pkgutil.walk_packages([str(PACKAGE / "conversion")], f"{NAME}.conversion."):
        importlib.import_module(module.name)
    for name in stompp_kernels.conversion.__all__:
        assert not isinstance(getattr(stompp_kernels.conversion, name), type(sys)), name
    assert stompp_kernels.conversion.prepare is stompp_kernels.prepare


@pytest.mark.slow
@pytest.mark.parametrize(
    "first", ["models", "conversion.prepare.checks", "conversion.files.modules", "training.recipe"]
)
def test_any_module_can_be_imported_first(first):
    script = (
        f"import {NAME}.{first}, stompp_kernels as sk\n"
        "assert callable(sk.conversion.prepare) and callable(sk.conversion.convert)\n"
        "print(type(sk.models.create('mlp', 3, binarize='both')).__name__)"
    )
    done = run_python(script)
    assert (done.returncode, done.stdout) == (0, "MLP\n"), done.stderr
