"""Writes the ops alone as a kernel for Hugging Face's `kernels`, in the layout that kernel-builder builds.

    python scripts/export_hf_kernel.py build/hf-kernel

It has the ops of stompp_kernels.ops for CPUs: the C++ of csrc with the bindings, and the Python of the ops with what
they import. kernel-builder gives each build a namespace of its own, so the files name none, and no other package than
torch. Everything comes from this tree: change it here, and export again.
"""

import argparse
import ast
import re
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from build_tools.extensions import native_sources, sources_in
from build_tools.flags import CXX_FLAGS
from build_tools.settings import MIN_TORCH, ROOT

NAME = "stompp-ops"
PYTHON_NAME = NAME.replace("-", "_")
PACKAGE, OPS = "stompp_kernels", "stompp_kernels.ops"
# Launchers for GPUs, which the ops import where Triton may run.
LEFT_OUT = f"{OPS}.triton"
# kernel-builder links with a libstdc++ of its own, for systems that are older than its compiler.
LEFT_OUT_SOURCES = ("csrc/torch/old_systems.cpp",)
FLAGS = [flag for flag in CXX_FLAGS if flag.startswith("-f") and flag != "-fPIC"]

NAMESPACE_PY = '''"""What kernel-builder names: the ops of this build, their namespace, and the file that holds them."""

import importlib

from ._ops import add_op_namespace_prefix
from ._ops import ops as BUILD_OPS

NAMESPACE = add_op_namespace_prefix("").removesuffix("::")
LIBRARY = importlib.import_module(f".{NAMESPACE}", __package__).__file__

__all__ = ["BUILD_OPS", "LIBRARY", "NAMESPACE"]
'''

NAMESPACE_H = """// kernel-builder's name for the ops is a macro. These expand it; torch's would take it as it stands.
#pragma once

#include <torch/csrc/stable/library.h>

#define OPS_LIBRARY(name, m) STABLE_TORCH_LIBRARY(name, m)
#define OPS_LIBRARY_IMPL(name, device, m) STABLE_TORCH_LIBRARY_IMPL(name, device, m)
"""

BINDING_CPP = """#include "registration.h"

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
"""

CARD = """---
library_name: kernels
license: apache-2.0
tags: [kernels, binary-neural-networks]
---

# {name}

Operations of binary neural networks on CPUs (x86-64 and 64-bit Arm): packing of signs, binary matrix products and
convolutions on packed bits, products of floats with binary weights, and the progressive sign of StoMPP with its masks.
They are the ops of stompp_kernels, which trains and converts whole networks with them
([arXiv 2606.27759](https://arxiv.org/abs/2606.27759)).

```python
import torch
from kernels import get_kernel

ops = get_kernel("<where you uploaded it>/{name}")
a, w = torch.randn(8, 256), torch.randn(64, 256)
sums = ops.bgemm(ops.pack_signs(a), ops.pack_weight(w))  # int32 [8, 64]: the products of the signs
```

The instruction set is chosen when it runs. Available: {functions}.
"""


def module_file(name):
    """The file of a module of the package, None if there is none of this name."""
    path = ROOT.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imported_by(tree):
    """The modules of the package that a module imports at its top."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if module_file(inner) else node.module


def modules():
    """The ops and all that they import, each with its file."""
    found, left = {}, [OPS]
    while left:
        name = left.pop()
        if name not in found and name != PACKAGE:
            found[name] = module_file(name)
            left += imported_by(ast.parse(found[name].read_text()))
    return found


def exported_path(name, file):
    """Where a module goes: those of the ops beside those that they import."""
    parts = name.removeprefix(OPS if f"{name}.".startswith(f"{OPS}.") else PACKAGE).split(".")[1:]
    return Path(*parts, "__init__.py") if file.name == "__init__.py" else Path(*parts).with_suffix(".py")


def rewritten(text, path):
    """A module's source with relative imports and the namespace of the build."""
    dots = "." * len(path.parts)
    text = re.sub(rf"^( *)from {PACKAGE}(?:\.ops)?(?:\.([\w.]+))? import", rf"\1from {dots}\2 import", text, flags=re.M)
    text = re.sub(r"^triton: Any = .*$", "triton: Any = None", text, flags=re.M)
    text = re.sub(r"^PATH = .*libstompp_kernels\.so.*$", "PATH = Path(LIBRARY)", text, flags=re.M)
    text = re.sub(r"(?<!`)\btorch\.ops\.stompp\b", "BUILD_OPS", text)  # but for the prose of docstrings
    text = re.sub(r'f"stompp::', 'f"{NAMESPACE}::', text)
    text = re.sub(r'"stompp::(\w+)"', r'f"{NAMESPACE}::\1"', text)
    text = re.sub(r'"stompp"', "NAMESPACE", text)
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)]
    own = {node.id for node in found if isinstance(node.ctx, ast.Store)}
    names = sorted({node.id for node in found} & {"BUILD_OPS", "LIBRARY", "NAMESPACE"} - own)
    if not names:
        return text
    before = re.search(r"^(?=import |from (?!__future__))", text, re.MULTILINE).start()
    return f"{text[:before]}from {dots}_namespace import {', '.join(names)}\n{text[before:]}"


def check_imports(text, path):
    """Refuses what a kernel of the hub must not import: anything but itself, torch and the standard library."""
    tree = ast.parse(text)
    for_types = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    unread = {inner for node in for_types for inner in ast.walk(node)}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        for name in names:
            if node not in unread and name.split(".")[0] not in {*sys.stdlib_module_names, "torch"}:
                raise SystemExit(f"error: {path} imports {name}, which a kernel of the hub cannot")


def toml_list(words):
    return "[\n" + "".join(f'  "{word}",\n' for word in words) + "]"


def export(folder):
    """Writes the kernel's project into a folder, which must not exist or be empty."""
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"error: {folder} is not empty")
    files = {"LICENSE": (ROOT / "LICENSE").read_text(), "csrc/torch/namespace.h": NAMESPACE_H}
    sources = [source for source in native_sources() if source not in LEFT_OUT_SOURCES]
    for name in [*sources, *sources_in("csrc/core/**/*.h", "csrc/torch/*.h")]:
        text = (ROOT / name).read_text()
        plain = re.sub(r"\bSTABLE_TORCH_LIBRARY(\w*)\(stompp,", r"OPS_LIBRARY\1(TORCH_EXTENSION_NAME,", text)
        files[name] = text if plain == text else f'#include "torch/namespace.h"\n{plain}'
    python = f"torch-ext/{PYTHON_NAME}"
    files[f"{python}/_namespace.py"] = NAMESPACE_PY
    for name, file in modules().items():
        path = exported_path(name, file)
        text = rewritten(file.read_text(), path)
        check_imports(text, path)
        files[f"{python}/{path.as_posix()}"] = text
    files["torch-ext/torch_binding.cpp"] = BINDING_CPP
    listed = sorted(name for name in files if name.startswith("csrc/"))
    release = ".".join(map(str, MIN_TORCH))
    files["build.toml"] = f"""[general]
name = "{NAME}"
version = 1
license = "Apache-2.0"
backends = ["cpu"]

[torch]
minver = "{release}"
src = ["torch-ext/torch_binding.cpp"]

[kernel.{PYTHON_NAME}]
backend = "cpu"
depends = ["torch"]
include = ["csrc"]
cxx-flags = {toml_list(FLAGS)}
src = {toml_list(listed)}
"""
    exported = ast.literal_eval(re.search(r"__all__ = (\[.*?\])", files[f"{python}/__init__.py"], re.DOTALL)[1])
    files["CARD.md"] = CARD.format(name=NAME, functions=", ".join(f"`{name}`" for name in exported))
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return sorted(files)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder to write to, empty or new")
    folder = parser.parse_args().folder
    print(f"{folder}: {len(export(folder))} files")


if __name__ == "__main__":
    main()
