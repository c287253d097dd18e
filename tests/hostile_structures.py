"""Structures of packed files as someone would write them who wants code to run, or memory and time to be taken.

Every string, number, list and key of a structure is a place to aim at. Code in a payload sets
``builtins.STOMPP_INJECTED``.
"""

import builtins
import copy
import json
import math

import torch

from stompp_kernels.conversion.files import calls

CODE = "__import__('builtins').__dict__.__setitem__('STOMPP_INJECTED', 1)"
LINE_ENDS = ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", ";", "\\\n"]
# What torch.fx would paste: behind a dot, into getattr's quotes, as a name, a default, a keyword or an argument.
PAYLOADS = [
    'x"){end}{code}{end}def forward(self, x):{end}    y = getattr(x, "__class__',
    'x"){end}    {code}{end}    y = getattr(self, "x',
    "x, y={code}",
    "x=1, **{code}, **",
    "x: {code}",
    "x={code}",
    "x){end}    {code}{end}    (x",
    "']{end}    {code}{end}    ['",
    "# COUNTER: 1",
    "{code}",
    "*args",
    "**{code}",
    "x if {code} else x",
    "(lambda: {code})()",
    'f"{{{code}}}"',
]
NAMES = [
    *("__class__", "__init__", "__reduce__", "__dict__", "__globals__", "__import__", "__debug__", "forward", "self"),
    *("training", "_modules", "_parameters", "graph", "code", "recompile", "register_forward_hook", "load_state_dict"),
    *("lambda", "class", "None", "import", "torch", "getattr", "slice", "device", "inf", "nan", "pytree", "x.y", "."),
    *("os.system", "builtins.exec", "eval", "exec", "open", "torch.load", "torch.hub.load", "torch.ops.load_library"),
    *("F.boolean_dispatch", "torch.serialization.load", "apply_", "map_", "requires_grad_", "backward", "numpy", ""),
    *(
        "\uff53\uff45\uff4c\uff46",
        "\u017felf",
        "\uff46\uff4f\uff52\uff57\uff41\uff52\uff44",
        "\u0430",
        "x\u0301",
        "\u202ex",
        "x" * 5000,
        "a." * 300 + "a",
        "0",
        "a b",
        "\x00",
    ),
]
INTEGERS = [
    -(1 << 63),
    -(1 << 31),
    -2,
    -1,
    0,
    1,
    2,
    3,
    7,
    33,
    255,
    1 << 16,
    1 << 24,
    1 << 33,
    1 << 62,
    1 << 70,
    10**400,
]
CONSTANTS = [True, False, None, 0.5, -1.5, 1e300, math.inf, -math.inf, math.nan, [], {}, [[]], "same", "relu"]
SHAPES = [(1 << 40, 0), (0,), (0, 1 << 62), (1,), ()]


def text(rng, old):
    """Something to put in a string's place."""
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(PAYLOADS).format(end=rng.choice(LINE_ENDS), code=CODE)
    if kind == 1:
        return f"{old}.{rng.choice(NAMES)}"
    if kind == 2 and old:
        at = rng.randrange(len(old) + 1)
        return old[:at] + rng.choice([*LINE_ENDS, '"', "'", "\\", ".", "-", "#", " ", "{", "\uff41"]) + old[at:]
    return rng.choice(NAMES)


def value(rng, old, others):
    """Something to put in a value's place; `others` are what else the file has."""
    kind = rng.randrange(8)
    if kind == 0:
        return copy.deepcopy(rng.choice(others))
    if kind == 1:
        return rng.choice(CONSTANTS)
    if kind == 2:
        return rng.choice(INTEGERS)
    if kind == 3:
        key = rng.choice(
            ["node", "slice", "dtype", "memory_format", "device", "float", "ellipsis", "list", "dict", "x"]
        )
        return {key: text(rng, "x") if rng.random() < 0.7 else copy.deepcopy(rng.choice(others))}
    if isinstance(old, str):
        return text(rng, old)
    if isinstance(old, bool) or old is None:
        return rng.choice([1, 0, "true", *CONSTANTS])
    if isinstance(old, (int, float)):
        return rng.choice([old + 1, -old, old * 1000, float(old), str(old), [old] * rng.randrange(4), *INTEGERS])
    if isinstance(old, list):
        return rng.choice([old * 2, old[::-1], old[:-1], [old], {"list": old}, [*old, rng.choice(INTEGERS)]])
    return rng.choice([{**old, text(rng, "x"): 1}, list(old), {"node": old}])


def places(structure):
    """(container, key) of everything in nested lists and objects."""
    found, left = [], [structure]
    while left:
        container = left.pop()
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, inner in items:
            found.append((container, key))
            if isinstance(inner, (dict, list)):
                left.append(inner)
    return found


def change_a_value(rng, tensors, structure):
    found = places(structure)
    container, key = rng.choice(found)
    other, other_key = rng.choice(found)
    container[key] = value(rng, container[key], [other[other_key]])


def change_a_string(rng, tensors, structure):
    """Strings are few among all values, and are what may become code."""
    container, key = rng.choice([(c, k) for c, k in places(structure) if isinstance(c[k], str)])
    container[key] = text(rng, container[key])


def change_a_key(rng, tensors, structure):
    container, key = rng.choice([place for place in places(structure) if isinstance(place[0], dict)])
    inner = container[key] if rng.random() < 0.3 else container.pop(key)
    container[text(rng, key)] = copy.deepcopy(inner)


def drop(rng, tensors, structure):
    container, key = rng.choice(places(structure))
    del container[key]


def rename_everywhere(rng, tensors, structure):
    """One name becomes another in all places, tensors too: only the name itself can be wrong."""
    container, key = rng.choice([(c, k) for c, k in places(structure) if isinstance(c[k], str)])
    old = container[key]
    new = text(rng, old)
    for inner, k in places(structure):
        if inner[k] == old:
            inner[k] = new
        if isinstance(inner, dict) and k == old:
            inner[new] = inner.pop(old)
    for name in [name for name in tensors if name == old or name.startswith(f"{old}.")]:
        tensors[new + name[len(old) :]] = tensors.pop(name)


def change_the_order(rng, tensors, structure):
    """Nodes twice, swapped, or fed by what comes after them."""
    lists = [c[k] for c, k in places(structure) if isinstance(c[k], list) and len(c[k]) > 1]
    if lists:
        chosen = rng.choice(lists)
        a, b = rng.randrange(len(chosen)), rng.randrange(len(chosen))
        if rng.random() < 0.5:
            chosen[a], chosen[b] = chosen[b], chosen[a]
        else:
            chosen.insert(a, copy.deepcopy(chosen[b]))


def call_something(rng, tensors, structure):
    """A further node, of a function or method of the list or of none, with arguments of all kinds."""
    if "graph" not in structure:
        change_a_number(rng, tensors, structure)
        return
    at = rng.randrange(1, len(structure["graph"]))
    nodes = [node["name"] for node in structure["graph"][:at]]
    function = rng.random() < 0.6
    listed = calls.FUNCTION_SIGNATURES if function else calls.METHOD_SIGNATURES
    target = rng.choice(sorted(listed)) if rng.random() < 0.9 else text(rng, "torch.add")
    parameters = listed.get(target, ())

    def argument(kind_of_value):
        """Mostly something that the list allows."""
        found = [anything() for _ in range(20)]
        allowed = [one for one in found if kind_of_value.holds(one)]
        return rng.choice(allowed if allowed and rng.random() < 0.95 else found)

    def anything():
        kind = rng.randrange(4)
        if kind == 0:
            return {"node": rng.choice(nodes)}
        if kind == 1:
            return rng.choice([*INTEGERS, *CONSTANTS])
        if kind == 2:
            return [rng.choice([*INTEGERS[2:12], 1.5, {"node": rng.choice(nodes)}]) for _ in range(rng.randrange(5))]
        return rng.choice([{"dtype": "float64"}, {"slice": [0, 1 << 40, None]}, "nearest", "reflect", "shape", 2, 64])

    given = [p for p in parameters if p.required or rng.random() < 0.3]
    positional = given[: rng.choice([1, len(given)])]
    args = [argument(p.kind) for p in positional]
    args = [*args[:1], *args[1]] if len(args) == 2 and positional[1].many and type(args[1]) is list else args
    kwargs = {p.name: argument(p.kind) for p in given[len(positional) :]}
    op = "call_function" if function else "call_method"
    node = {"name": "hostile", "op": op, "target": target, "args": args, "kwargs": kwargs}
    structure["graph"].insert(at, node)
    for later in structure["graph"][at + 1 :]:
        for container, key in places(later["args"]):
            if isinstance(container, dict) and key == "node" and rng.random() < 0.3:
                container[key] = "hostile"


def change_a_number(rng, tensors, structure):
    numbers = [(c, k) for c, k in places(structure) if type(c[k]) in (int, float)]
    if numbers:
        container, key = rng.choice(numbers)
        container[key] = rng.choice([*INTEGERS, container[key] * 2, container[key] + 1, 64, 1000, 1 << 20, 1e9])


def change_a_tensor(rng, tensors, structure):
    name, kind = rng.choice(sorted(tensors)), rng.randrange(4)
    if kind == 0:
        tensors[text(rng, name)] = tensors.pop(name)
    elif kind == 1:
        tensors[rng.choice([name, "x"])] = torch.zeros(rng.choice(SHAPES))
    elif kind == 2:
        tensors[name] = tensors[name].to(rng.choice([torch.float64, torch.int32, torch.bool, torch.bfloat16]))
    else:
        tensors[name] = tensors[name].flatten()


CHANGES = (
    *(change_a_value, change_a_string, change_a_string, change_a_key, drop, rename_everywhere, change_the_order),
    *(call_something, call_something, change_a_number, change_a_number, change_a_tensor),
)


def change_text(rng, structure_text):
    """What no object of Python says: keys given twice, lists in lists without end, constants that are no JSON."""
    kind = rng.randrange(4)
    if kind == 0:
        at = structure_text.index("{") + 1
        return f'{structure_text[:at]}"modules": {{}}, "graph": [], {structure_text[at:]}'
    if kind == 1:
        depth = rng.choice([100, 900, 5000, 100_000])
        return structure_text.replace("[]", "[" * depth + "]" * depth, 1)
    if kind == 2:
        return structure_text.replace("1", rng.choice(["NaN", "Infinity", "-Infinity", "1e999", "1" * 5000]), 1)
    at = rng.randrange(len(structure_text))
    return (
        structure_text[:at] + rng.choice(['"', "{", "}", "[", ",", "\x00", "\\u0000", "\\ud800"]) + structure_text[at:]
    )


def hostile(rng, tensors, structure):
    """(name of the change, text of the changed structure); tensors are changed in place."""
    if rng.random() < 0.05:
        return "change_text", change_text(rng, json.dumps(structure))
    change = rng.choice(CHANGES)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        change(rng, tensors, structure)
    return change.__name__, json.dumps(structure)


def ran():
    """Whether code of a payload has run."""
    return hasattr(builtins, "STOMPP_INJECTED")
