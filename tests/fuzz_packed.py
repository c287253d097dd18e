r"""Mutated packed files: each is refused with a clear ValueError or gives the network that it describes.

    python tests/fuzz_packed.py 10000 --seed 0
    python tests/fuzz_packed.py 20000 --structure

With --structure the bytes stay whole, every checksum fits, and the structure is what someone would write who wants code
to run or memory and time to be taken (hostile_structures.py): none runs code, and none takes more than 1 GB or 5 s of
the processor, to be loaded or to be run on the original's input. Without it, half of the files get a checksum that fits
them again, so that what stands behind it is reached. Memory is limited, and a process that hangs is ended with its
stacks; a file that breaks a promise is left in the working directory. With the library built with sanitizers:

    LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)" \
        ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=4096 \
        python tests/fuzz_packed.py 10000 --no-memory-limit
"""

import argparse
import contextlib
import copy
import faulthandler
import io
import json
import math
import random
import resource
import struct
import tempfile
import time
from collections import Counter
from pathlib import Path

import hostile_structures
import torch
import torch.nn.functional as F
from models_for_tests import committed, set_stage
from safetensors import safe_open
from safetensors.torch import load, save
from torch import nn

import stompp_kernels as sk
from stompp_kernels.conversion.files import container
from stompp_kernels.nn import Stage

HANG_SECONDS = 300
MEMORY_BYTES = 4 << 30  # beyond what the process has when it begins
LOAD_BYTES = 50 << 20  # what a load may add to resident memory at most
RUN_BYTES, SECONDS = 1 << 30, 5.0  # what a call may add, and what a load or a call may take of the processor
# Sizes that are small or that no machine has, as a size between them would be right and take long.
INTEGERS = [-(1 << 63), -(1 << 31), -1, 0, 1, 2, 3, 7, 31, 33, 1 << 20, 1 << 31, 1 << 33, (1 << 63) - 1, 1 << 70]
VALUES = [
    *INTEGERS,
    *INTEGERS,
    None,
    True,
    False,
    0.5,
    math.inf,
    math.nan,
    "",
    "x",
    "valid",
    "a.b",
    [],
    [1],
    [1, 1],
    {},
]
DTYPES = [torch.float32, torch.int32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def grouped():
    """A network of grouped and depthwise convolutions and functions, and its input."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.relu1, self.conv1 = nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
            self.norm, self.relu2, self.conv2 = nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1, groups=2)
            self.pool, self.head = nn.MaxPool2d(2), nn.Linear(48, 4)

        def forward(self, x):
            y = self.norm(self.conv1(self.relu1(self.stem(x))))
            y = self.pool(torch.relu(self.conv2(self.relu2(y))))
            return self.head(torch.flatten(y[:, 0:12], 1))

    torch.manual_seed(1)
    x = torch.randn(2, 3, 8, 8)
    model, _ = sk.prepare(Net(), x)
    return set_stage(model, Stage.BINARY).eval(), x


def encoder():
    """An encoder of transformers, which is converted layer by layer, and its input."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = {"model_type": "bert", "vocab_size": 50, "max_position_embeddings": 20, **sizes}
    model = sk.models.create("bert", 3, config=config, max_length=10, binarize="both")
    ids = torch.randint(50, (2, 10))
    return set_stage(model, Stage.BINARY).eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def varied():
    """A network with names, tensors and functions of many kinds, which gives a dict, and its input."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.relu1, self.conv1 = nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1)
            self.add_module("block-1", nn.Sequential(nn.BatchNorm2d(8), nn.Hardswish()))
            self.up, self.shift = nn.Upsample(scale_factor=2), nn.Parameter(torch.randn(1, 8, 1, 1))
            self.register_buffer("table", torch.arange(8))
            self.head = nn.Linear(32, 4)

        def forward(self, x, scale=1.0):
            y = getattr(self, "block-1")(self.conv1(self.relu1(self.stem(x)))) + self.shift
            y = F.interpolate(self.up(y), size=[12, 12], mode="bilinear", align_corners=False)
            y = torch.cat(F.pad(y, (1, 1, 0, 0)).chunk(2, 1)[::-1], 1)[:, self.table].repeat(1, 1, 2, 1)
            y = F.adaptive_avg_pool2d(y, (2, None)).mean(3, keepdim=True).to(torch.float32) * scale
            y = y.expand(-1, -1, -1, 2).reshape(y.shape[0], -1, 2).transpose(1, 2).flatten(1)
            return self.head(y)

    torch.manual_seed(1)
    x = torch.randn(2, 3, 8, 8)
    model, _ = sk.prepare(Net(), x)
    return set_stage(model, Stage.BINARY).eval(), x


def exported():
    """A network whose forward torch.export alone can read, and its input."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)
            self.up, self.fc, self.head = nn.ConvTranspose2d(8, 8, 2, 2), nn.Linear(8, 8), nn.Linear(8, 4)
            self.shift = nn.Parameter(torch.randn(1, 8, 1, 1))

        def forward(self, x):
            y = self.norm(self.conv(self.stem(x))) + self.shift
            if y.shape[-1] > 4:
                y = F.interpolate(self.up(y), size=(6, 6), mode="bilinear").roll(1, 2)
            y = F.pad(y, (1, 1)).flatten(2).transpose(1, 2)
            y = torch.cat([y, y.new_zeros(y.shape[0], 1, 8)], 1).repeat(1, 2, 1).cumsum(1)
            return self.head((y.softmax(-1) * self.fc(y)).mean(1))

    torch.manual_seed(1)
    x = torch.randn(2, 3, 8, 8)
    model, _ = sk.prepare(Net(), x)
    return set_stage(model, Stage.BINARY).eval(), x


OWN_MODELS = {f.__name__: f for f in (grouped, encoder, varied, exported)}


class Original:
    """An intact file, what is in it and what its network computes."""

    def __init__(self, name, folder, binarize="both"):
        model, x = OWN_MODELS[name]() if name in OWN_MODELS else committed(name, 3, binarize=binarize)
        path = folder / f"{name}.safetensors"
        by_layer = True if name == "exported" else None
        sk.save_packed(sk.convert(model, by_layer=by_layer), path, example_inputs=x)
        self.name, self.data, self.x = name, path.read_bytes(), x if isinstance(x, dict) else x[:2]
        self.tensors, (self.metadata, self.structure) = load(self.data), parts_of(path)
        self.result = run(sk.load_packed(path), self.x)


def parts_of(path):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    return metadata, json.loads(metadata["structure"])


def run(network, x):
    """What a network gives for copies of x, whose shape a forged one may change in place."""
    with torch.no_grad():
        return network(**{name: t.clone() for name, t in x.items()}) if isinstance(x, dict) else network(x.clone())


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())


def flip_bits(rng, data):
    data = bytearray(data)
    end = len(data) if rng.random() < 0.5 else 8 + struct.unpack("<Q", data[:8])[0]
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        data[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(data)


def cut(rng, data):
    at = rng.randrange(len(data))
    return data[:at] if rng.random() < 0.5 else data[:at] + data[at + 1 + rng.randrange(100) :]


def insert(rng, data):
    at, source = rng.randrange(len(data) + 1), rng.randrange(len(data))
    new = rng.randbytes(rng.randrange(1, 100)) if rng.random() < 0.5 else data[source : source + rng.randrange(1, 1000)]
    return data[:at] + new + data[at:]


def change_header_length(rng, data):
    length = struct.unpack("<Q", data[:8])[0]
    near, far = [0, 1, length - 1, length + 1, len(data)], [1 << 20, 100_000_000, 1 << 32, (1 << 63) - 1, (1 << 64) - 1]
    new = rng.choice([*near, *far])
    return struct.pack("<Q", new) + data[8:]


def change_header(rng, data):
    """Another dtype, shape or place of a tensor in the file's own header."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    entry = header[rng.choice([key for key in header if key != "__metadata__"])]
    key = rng.choice(["dtype", "shape", "data_offsets"])
    if key == "dtype":
        entry[key] = rng.choice(["F64", "F32", "I32", "I64", "U8", "BOOL", "BF16", "F8_E4M3", "none", 5])
    elif entry[key] and rng.random() < 0.8:
        entry[key][rng.randrange(len(entry[key]))] = rng.choice(INTEGERS)
    else:
        entry[key] = rng.choice(VALUES)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


BYTES = {f.__name__: f for f in (flip_bits, cut, insert, change_header_length, change_header)}


def places(value, parent=None, key=None):
    """(container, key) of everything in nested lists and dicts."""
    if parent is not None:
        yield parent, key
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for inner_key, inner in items:
        yield from places(inner, value, inner_key)


def change_structure(rng, tensors, structure):
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        found = list(places(structure))
        if not found:
            return
        parent, key = rng.choice(found)
        kind = rng.randrange(5)
        if kind == 0:
            del parent[key]
        elif kind == 1:
            other, other_key = rng.choice(found)
            parent[key] = copy.deepcopy(other[other_key])
        elif kind == 2 and isinstance(parent, list):
            parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(parent[key]))
        elif kind == 3 and isinstance(parent, dict):
            parent[rng.choice(["x", "weight", "type", "shape", "0"])] = parent.pop(key)
        else:
            parent[key] = rng.choice(VALUES)


def change_tensor(rng, tensors, structure):
    name, other = rng.choice(sorted(tensors)), rng.choice(sorted(tensors))
    t, kind = tensors[name], rng.randrange(8)
    if kind == 0:
        tensors[name], tensors[other] = tensors[other], tensors[name]
    elif kind == 1:
        tensors[name] = t.to(rng.choice(DTYPES))
    elif kind == 2:
        tensors[name] = t.flatten()[: rng.randrange(t.numel() + 1)]
    elif kind == 3:
        tensors[name] = t.unsqueeze(rng.randrange(t.dim() + 1))
    elif kind == 4:
        del tensors[name]
    elif kind == 5:
        tensors[f"{name}.{rng.choice(['x', 'weight', ''])}"] = t.clone()
    elif kind == 6 and t.is_floating_point():
        tensors[name] = torch.full_like(t, rng.choice([math.nan, math.inf, 1e30, 0.0]))
    else:
        values = torch.tensor(list(rng.randbytes(t.numel() * t.element_size())), dtype=torch.uint8)
        tensors[name] = values.view(t.dtype).view(t.shape) if t.dim() else t


CONTENTS = {f.__name__: f for f in (change_structure, change_tensor)}


def with_checksum(data):
    """The same file with a checksum that fits, or None where it is beyond repair."""
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(data)
        file.flush()
        try:
            tensors = load(data)
            with safe_open(file.name, framework="pt") as opened:
                metadata = dict(opened.metadata() or {})
        except Exception:  # what the reader of the format says is tested without a repair
            return None
    digest = container.digest(metadata.get("structure", ""), tensors)
    return save(tensors, metadata | {"sha256": digest})


def mutate(rng, original):
    """(kind, mutated file, whether its checksum fits)."""
    kind = rng.choice([*BYTES, *(2 * [*CONTENTS])])
    if kind in BYTES:
        data = BYTES[kind](rng, original.data)
        repaired = with_checksum(data) if rng.random() < 0.5 else None
        return kind, data if repaired is None else repaired, repaired is not None
    tensors, structure = dict(original.tensors), copy.deepcopy(original.structure)
    CONTENTS[kind](rng, tensors, structure)
    text, tensors = json.dumps(structure), {name: t.contiguous().clone() for name, t in tensors.items()}
    fits = rng.random() < 0.75
    digest = container.digest(text, tensors) if fits else original.metadata["sha256"]
    return kind, save(tensors, original.metadata | {"structure": text, "sha256": digest}), fits


def forge(rng, original):
    """(kind, file with a hostile structure, that its checksum fits)."""
    while True:
        tensors, structure = dict(original.tensors), copy.deepcopy(original.structure)
        kind, text = hostile_structures.hostile(rng, tensors, structure)
        tensors = {name: t.contiguous().clone() for name, t in tensors.items()}
        try:
            digest = container.digest(text, tensors)
            return kind, save(tensors, original.metadata | {"structure": text, "sha256": digest}), True
        except UnicodeEncodeError:  # half of a surrogate pair is no text of a file
            continue


def memory(key):
    """Bytes of /proc/self/status: VmRSS is resident memory, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def load_or_refuse(path):
    """The network of a mutated file, or None after the one error that is allowed."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, start = memory("VmRSS"), time.process_time()
    try:
        network = sk.load_packed(path)
    except ValueError as error:
        if path.name not in str(error):
            raise AssertionError("the message does not name the file") from error
        network = None
    growth = memory("VmHWM") - before
    assert growth < LOAD_BYTES, f"a load of {path.stat().st_size} bytes took {growth}"
    assert time.process_time() - start < SECONDS, "a load took too long"
    return network


def run_or_fail(network, x):
    """What a network gives; None after an error, which a forged network may end in."""
    Path("/proc/self/clear_refs").write_text("5")
    before, start = memory("VmRSS"), time.process_time()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # torch.fx prints where it stopped
            result = run(network, x)
    except Exception as error:  # of a forged network whose parts do not fit each other; not the end of the process
        if "allocate memory" in str(error):
            raise AssertionError("a call asks for too much memory") from error
        result = None
    growth = memory("VmHWM") - before
    assert growth < RUN_BYTES, f"a call took {growth} bytes"
    assert time.process_time() - start < SECONDS, "a call took too long"
    return result


def outcome_of(original, path, fits):
    """What became of a mutated file; raises where a promise is broken."""
    network = load_or_refuse(path)
    if network is None:
        return "refused"
    if not fits:
        assert same(run(network, original.x), original.result), "another network than the one that was saved"
        return "the same"
    sk.save_packed(network, path)  # before it runs, as functions in place may change its own tensors
    result = run_or_fail(network, original.x)
    if result is None:
        return "loaded, does not run"
    if not isinstance(result, torch.Tensor):
        return "loaded, gives no tensor"
    assert same(run(sk.load_packed(path), original.x), result), "saved and loaded again it is another network"
    return "the same" if same(result, original.result) else "another, runs"


def limit_memory():
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, size + MEMORY_BYTES))


def fuzz(count, seed, folder, change=mutate):
    """Outcomes of `count` files by (kind, whether the checksum fits, outcome)."""
    originals = [
        Original(name, folder) for name in ("residual", "bireal", "mlp", "grouped", "encoder", "varied", "exported")
    ]
    originals.append(Original("residual", folder, "weights"))
    path, found = folder / "mutated.safetensors", Counter()
    for index in range(count):
        rng = random.Random(seed * 1_000_003 + index)
        original = rng.choice(originals)
        kind, data, fits = change(rng, original)
        path.write_bytes(data)
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        try:
            found[kind, fits, outcome_of(original, path, fits)] += 1
            assert not hostile_structures.ran(), "code of the file has run"
        except BaseException:
            Path("broken.safetensors").write_bytes(data)
            print(f"number {index} ({kind} of {original.name}, seed {seed}) is left in broken.safetensors", flush=True)
            raise
        faulthandler.cancel_dump_traceback_later()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--no-memory-limit", action="store_true", help="set no limit, for sanitizers, which have their own"
    )
    parser.add_argument("--structure", action="store_true", help="forge hostile structures whose checksums fit")
    options = parser.parse_args()
    faulthandler.enable()
    torch.set_num_threads(1)
    if not options.no_memory_limit:
        limit_memory()
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(options.count, options.seed, Path(folder), forge if options.structure else mutate)
    for (kind, fits, outcome), number in sorted(found.items()):
        print(f"{kind}, checksum {'fits' if fits else 'as it was'}: {outcome}: {number}")
    print(f"{sum(found.values())} files")


if __name__ == "__main__":
    main()
