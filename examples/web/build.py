"""Builds the page into a folder: trains its two networks, compiles libstompp to WebAssembly, and copies the sources.

    python examples/web/build.py build/web
    python -m http.server --directory build/web

It needs the extras `demo` and `wasm`. `make web` installs them first.
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from torch.fx.experimental.optimization import fuse

import stompp_kernels as sk
from stompp_kernels.training.data import load
from stompp_kernels.training.demo import EPOCHS, recipe_of_demo
from stompp_kernels.training.evaluate import accuracy, predict
from stompp_kernels.training.trained import load_trained
from stompp_kernels.training.trainer import train

sys.path.append(str(Path(__file__).resolve().parents[2]))

from build_tools.wasm import compile_library

HERE = Path(__file__).resolve().parent
PAGES = ("index.html", "style.css", "page.js", "drawing.js", "stompp.js")

# The demo's network with half its channels: with the float network the page stays below 1 MB.
WIDTHS = {"widths": [32, 32, 32, 32]}


def train_network(name, binarize, epochs, data, folder):
    """Trains, packs and saves a network, and returns the percentage of test images that it reads right."""
    recipe = recipe_of_demo("ste", "clip", 0, epochs)
    recipe = replace(recipe, model=replace(recipe.model, binarize=binarize, options=WIDTHS))
    with tempfile.TemporaryDirectory() as run:
        train(recipe, Path(run) / "run", device="cpu")
        model = load_trained(Path(run) / "run")[0].eval()
    # Torch folds BatchNorm into float convolutions, as convert does into binary ones.
    network = fuse(model) if binarize == "nothing" else sk.convert(model)
    sk.save_packed(network, folder / f"{name}.safetensors")
    return accuracy(*predict(network, data))


def examples(data):
    """Returns the first test image of each digit."""
    first = [int((data.test_labels == digit).nonzero()[0]) for digit in range(data.num_classes)]
    return [{"label": i, "pixels": data.test_images[at].flatten().tolist()} for i, at in enumerate(first)]


def main(arguments=None):
    """Build the page; ``arguments`` are the command line's words."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="Where the page goes.")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="Length of each training.")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    data = load("digits")
    compile_library(options.folder / "stompp.wasm")
    right = {
        name: train_network(name, binarize, options.epochs, data, options.folder)
        for name, binarize in (("packed", "both"), ("float", "nothing"))
    }
    facts = {"mean": data.mean.item(), "std": data.std.item(), "accuracy": right, "examples": examples(data)}
    (options.folder / "digits.json").write_text(json.dumps(facts) + "\n")
    for name in PAGES:
        shutil.copy(HERE / name, options.folder)
    total = sum(path.stat().st_size for path in options.folder.iterdir())
    print(f"{options.folder} has {total / 1000:.0f} KB; python -m http.server --directory {options.folder} shows it")


if __name__ == "__main__":
    main()
