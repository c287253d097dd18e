"""Mutated packed files in libstompp: each is refused, or gives what Python's network of the file gives.

    python tests/fuzz_runtime.py build/libstompp/libstompp.so 10000 --seed 0

Half of the files are mutated as fuzz_packed.py does, half have a hostile structure. `make fuzz-runtime` runs it with
the library built with sanitizers; a file that breaks the promise is left in the working directory.
"""

import argparse
import random
import tempfile
from collections import Counter
from pathlib import Path

import fuzz_packed
import torch
from libstompp import BAD_ARGUMENT, NO_MEMORY, REFUSED, Library, StomppError

import stompp_kernels as sk

ORIGINALS = ("residual", "bireal", "mlp", "grouped", "varied", "exported")


def attempt(function, *args, statuses):
    """What a function gives, or None after one of the errors that are allowed."""
    try:
        return function(*args)
    except StomppError as error:
        if error.status not in statuses or not error.text:
            raise
        return None


def outcome_of(library, original, data, path):
    """What became of a mutated file; raises where a promise is broken."""
    network = attempt(library.open, data, statuses=REFUSED)
    if network is None:
        return "refused"
    results = attempt(network.run, original.x, statuses=(BAD_ARGUMENT, *REFUSED, NO_MEMORY))
    if results is None:
        return "opened, does not run"
    path.write_bytes(data)
    try:
        python = sk.load_packed(path)
    except ValueError as error:
        if not str(error).endswith("is reserved"):  # names of attributes, which matter in Python alone
            raise
        return "opened, has a name that Python reserves"
    expected = fuzz_packed.run(python, original.x)
    expected = expected if isinstance(expected, torch.Tensor) else next(iter(expected))
    assert close(results[0], expected), "another result than Python's"
    return "the same" if close(results[0], original.result) else "another, as Python's"


def close(result, expected):
    """Whether values are Python's up to rounding, which the largest of them decide. Sums that overflow may be any."""
    if result.shape != expected.shape:
        return False
    scale = float(expected.abs().max())
    return not scale < 1e30 or torch.allclose(result, expected.float(), rtol=1e-3, atol=1e-3 * scale)


def fuzz(library, count, seed, folder, names=ORIGINALS):
    """Outcomes of `count` files by kind of mutation."""
    made, found = [fuzz_packed.Original(name, folder) for name in names], Counter()
    for index in range(count):
        rng = random.Random(seed * 1_000_003 + index)
        original = rng.choice(made)
        kind, data, _ = (fuzz_packed.forge if index % 2 else fuzz_packed.mutate)(rng, original)
        try:
            found[kind, outcome_of(library, original, data, folder / "mutated.safetensors")] += 1
        except BaseException:
            Path("broken.safetensors").write_bytes(data)
            print(f"number {index} ({kind} of {original.name}, seed {seed}) is left in broken.safetensors", flush=True)
            raise
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", help="path of libstompp.so")
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(Library(options.library), options.count, options.seed, Path(folder))
    for outcome in sorted({outcome for _, outcome in found}):
        print(f"{outcome}: {sum(n for (_, other), n in found.items() if other == outcome)}")
    print(f"{options.count} files")


if __name__ == "__main__":
    main()
