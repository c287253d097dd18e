"""The kinds of values that the structure of a packed file may hold, and signatures made of them.

A kind says yes or no to a value as JSON has it. Values that JSON lacks are objects with one key: ``{"node": name}``,
``{"slice": [start, stop, step]}``, ``{"ellipsis": true}``, ``{"dtype": name}``, ``{"memory_format": name}``,
``{"device": name}`` and ``{"float": "inf" | "-inf" | "nan"}``. Whatever a signature lets through may be pasted by
torch.fx into source text, so no kind takes strings but from a closed list or of harmless characters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DTYPES = (
    *("float32", "float64", "float16", "bfloat16"),
    *("bool", "uint8", "int8", "int16", "int32", "int64", "complex64"),
)
MEMORY_FORMATS = ("contiguous_format", "channels_last", "channels_last_3d", "preserve_format")
DEVICES = ("cpu", "cuda")
_SHOWN = 80  # characters of a wrong value in a message
# The characters of a message that an assertion shows. torch.fx looks for "# COUNTER" in the text that it makes.
_TEXT = re.compile(r"[A-Za-z0-9 _.,:;()\[\]{}<>=!?*/%'+-]{0,400}")
_WORD = re.compile(r"[A-Za-z0-9 _.,:/-]{0,400}")
_PATH = re.compile(r"[A-Za-z0-9 _.,:/\[\]'-]{0,400}")


@dataclass(frozen=True)
class Kind:
    """A set of JSON values; ``says`` ends the sentence "must be ..."."""

    says: str
    holds: Callable[[Any], bool]

    def __or__(self, other: Kind) -> Kind:
        return Kind(f"{self.says} or {other.says}", lambda value: self.holds(value) or other.holds(value))

    def check(self, name: str, value: Any) -> None:
        """Raises ValueError unless the value is of this kind."""
        if not self.holds(value):
            raise ValueError(f"{name} must be {self.says}, got {shown(value)}")


def shown(value: Any) -> str:
    """The value, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def integer(low: int, high: int) -> Kind:
    """Allows the integers of a range, and neither True nor False."""
    # type() and not isinstance(): True is no integer here.
    return Kind(f"an integer in [{low}, {high}]", lambda v: type(v) is int and low <= v <= high)


def choice(*allowed: str | int) -> Kind:
    """Allows the listed values, of their own types."""
    listed = ", ".join(map(repr, allowed))
    return Kind(f"one of {listed}", lambda v: any(type(v) is type(a) and v == a for a in allowed))


def wrapped(key: str, allowed: Sequence[Any]) -> Kind:
    """An object of one key whose value is listed."""
    says = f'{{"{key}": ...}} with one of {", ".join(map(str, allowed))}'
    inner = choice(*allowed)
    return Kind(says, lambda v: type(v) is dict and v.keys() == {key} and inner.holds(v[key]))


def list_of(kind: Kind, at_least: int, at_most: int) -> Kind:
    """Allows lists of so many values, each of a kind."""
    length = f"{at_least}" if at_least == at_most else f"{at_least} to {at_most}"
    return Kind(
        f"a list of {length} values, each {kind.says}",
        lambda v: type(v) is list and at_least <= len(v) <= at_most and all(map(kind.holds, v)),
    )


def with_product(kind: Kind, limit: int, of: Callable[[Any], float] = abs) -> Kind:
    """The same kind, where the numbers of a list, or a number alone, multiply to at most the limit."""

    def holds(value: Any) -> bool:
        numbers = [v for v in (value if type(value) is list else [value]) if type(v) in (int, float)]
        return kind.holds(value) and math.prod(max(1, of(v)) for v in numbers) <= limit

    return Kind(f"{kind.says}, whose product is at most {limit}", holds)


def _is_number(value: Any) -> bool:
    # A float that JSON cannot say comes as an object; an integer beyond 2^31 is no constant of a network.
    if type(value) is int:
        return abs(value) <= 1 << 31
    return type(value) is float or NON_FINITE.holds(value)


def _is_slice(value: Any) -> bool:
    return (
        type(value) is dict
        and value.keys() == {"slice"}
        and type(value["slice"]) is list
        and len(value["slice"]) == 3
        and all(map((INDEX | NONE).holds, value["slice"]))
    )


def pads(inner: Kind, at_most: int) -> Kind:
    """What is added at both ends of each dimension, the last first; the sums multiply to at most ``at_most``."""
    numbers = list_of(inner, 2, 10)

    def holds(value: Any) -> bool:
        if not numbers.holds(value):
            return False
        ends = [abs(v) if type(v) is int else 0 for v in value]
        return (
            len(ends) % 2 == 0 and math.prod(1 + a + b for a, b in zip(ends[::2], ends[1::2], strict=True)) <= at_most
        )

    return Kind(f"{numbers.says}, of even length, that adds at most {at_most} places to one", holds)


NONE = Kind("null", lambda v: v is None)
BOOLEAN = Kind("true or false", lambda v: type(v) is bool)
NODE = Kind("a node of the graph", lambda v: type(v) is dict and v.keys() == {"node"} and type(v["node"]) is str)
NON_FINITE = wrapped("float", ("inf", "-inf", "nan"))
NUMBER = Kind("a number", _is_number)
ELLIPSIS = Kind('{"ellipsis": true}', lambda v: type(v) is dict and v == {"ellipsis": True} and v["ellipsis"] is True)
DTYPE = wrapped("dtype", DTYPES)
# Values and names of arguments, which checks compare and name.
WORD = Kind("a text of letters, digits and  _.,:/-", lambda v: type(v) is str and _WORD.fullmatch(v) is not None)
PATH = Kind("the name of an argument", lambda v: type(v) is str and _PATH.fullmatch(v) is not None)
TEXT = Kind("a short text", lambda v: type(v) is str and _TEXT.fullmatch(v) is not None)
INDEX = integer(-(1 << 31), (1 << 63) - 1) | NODE  # a slice's stop may be sys.maxsize
SLICE = Kind('{"slice": [start, stop, step]}', _is_slice)


def triple(low: int, high: int) -> Kind:
    """A number for each of up to three dimensions, or one for all."""
    return integer(low, high) | list_of(integer(low, high), 1, 3)


@dataclass(frozen=True)
class Parameter:
    """An argument of a call.

    Attributes:
        many: takes all positional arguments that are left, or one list of them.
    """

    name: str
    kind: Kind
    required: bool
    many: bool = False


def signature(text: str, kinds: Mapping[str, Kind]) -> tuple[Parameter, ...]:
    """Parameters of a text such as ``"x:tensor dim:dim keepdim=bool"``.

    ``:`` is required and ``=`` optional; ``*name:kind`` takes all that is left; ``|`` joins kinds.
    """
    parameters = []
    for word in text.split():
        name, separator, names = re.fullmatch(r"(\*?\w+)([:=])([\w|]+)", word).groups()  # type: ignore[union-attr]
        first, *more = [kinds[key] for key in names.split("|")]
        for other in more:
            first = first | other
        parameters.append(Parameter(name.lstrip("*"), first, separator == ":", name.startswith("*")))
    return tuple(parameters)


def check_call(what: str, parameters: Sequence[Parameter], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises ValueError unless the arguments fit the signature."""
    many = next((index for index, p in enumerate(parameters) if p.many), None)
    values = list(args)
    given = {}
    if many is not None and len(values) > many:
        rest = values[many:]
        values = values[:many]
        given[parameters[many].name] = rest[0] if len(rest) == 1 and type(rest[0]) is list else rest
    if len(values) > len(parameters):
        raise ValueError(f"{what} takes at most {len(parameters)} positional arguments, got {len(values)}")
    positional = {p.name: value for p, value in zip(parameters, values, strict=False)}
    if twice := sorted((positional.keys() | given.keys()) & kwargs.keys()):
        raise ValueError(f"{what} is given {', '.join(map(shown, twice))} twice")
    given |= {**positional, **kwargs}
    known = {p.name: p for p in parameters}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{what} has no argument {shown(name)}")
        known[name].kind.check(f"argument {name!r} of {what}", value)
    for parameter in parameters:
        if parameter.required and parameter.name not in given:
            raise ValueError(f"{what} needs an argument {parameter.name!r}")
