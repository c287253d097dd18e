"""p(t) and the windows."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stompp_kernels.progression.schedule import SHAPES, frozen_probability, order_units, reached_fraction, windows

VALUES = {
    "cubic": [0, 1 / 64, 1 / 8, 1],
    "linear": [0, 0.25, 0.5, 1],
    "quadratic": [0, 1 / 16, 0.25, 1],
    "cosine": [0, (1 - math.sqrt(0.5)) / 2, 0.5, 1],
    "flipped_quadratic": [0, 7 / 16, 0.75, 1],
}
UNITS = st.integers(1, 12)
FRACTION = st.floats(0, 0.45)
OVERLAP = st.floats(0, 0.9)


def test_every_shape_is_checked():
    assert set(VALUES) == set(SHAPES)


@pytest.mark.parametrize("shape", VALUES)
def test_shapes_take_their_values(shape):
    assert [frozen_probability(shape, t) for t in (0, 0.25, 0.5, 1)] == pytest.approx(VALUES[shape], abs=1e-15)
    assert frozen_probability(shape, -1) == pytest.approx(0)
    assert frozen_probability(shape, 2) == pytest.approx(1)


@given(shape=st.sampled_from(sorted(SHAPES)), t=st.floats(0, 1), u=st.floats(0, 1))
def test_shapes_never_fall_and_stay_probabilities(shape, t, u):
    low, high = frozen_probability(shape, min(t, u)), frozen_probability(shape, max(t, u))
    assert 0 <= low <= high <= 1


@pytest.mark.parametrize(("window", "reached"), [(78, 0.16), (293, 0.45), (2194, 0.88), (9382, 0.97)])
def test_a_mask_ends_its_window_behind_p(window, reached):
    # Measured with the op itself, at r = 100.
    assert reached_fraction("cubic", window, 100) == pytest.approx(reached, abs=0.006)


def test_order_places_units():
    names = ["a", "b", "c"]
    assert order_units(names, "forward") == [0, 1, 2]
    assert order_units(names, "reverse") == [2, 1, 0]
    assert order_units(names, "global") == [0, 0, 0]
    assert order_units(names, ["c", "a", "b"]) == [1, 2, 0]
    assert order_units(names, ("b", "c", "a")) == [2, 0, 1]


@pytest.mark.parametrize("order", [["a", "b"], ["a", "b", "b"], ["a", "b", "c", "d"], ["a", "b", "x"], []])
def test_an_explicit_order_must_name_every_unit_once(order):
    with pytest.raises(ValueError, match="order must name every unit once"):
        order_units(["a", "b", "c"], order)


def test_unknown_order_is_named():
    with pytest.raises(ValueError, match=r"order.*'sideways'"):
        order_units(["a"], "sideways")


def test_windows_fill_the_run_between_warmup_and_cooldown():
    assert windows([0, 1, 2, 3], 100, 0.1, 0.1, 0.0) == [range(10, 30), range(30, 50), range(50, 70), range(70, 90)]
    assert windows([3, 2, 1, 0], 100, 0.0, 0.0, 0.0) == [range(75, 100), range(50, 75), range(25, 50), range(25)]
    assert windows([0, 0, 0], 100, 0.2, 0.3, 0.0) == [range(20, 70)] * 3


def test_windows_overlap_by_a_fraction_of_their_length():
    # length * (1 + 2 * 0.5) = 100
    assert windows([0, 1, 2], 100, 0.0, 0.0, 0.5) == [range(50), range(25, 75), range(50, 100)]


@given(count=UNITS, total=st.integers(1, 5000), warmup=FRACTION, cooldown=FRACTION, overlap=OVERLAP)
def test_windows_lie_inside_the_run_in_order(count, total, warmup, cooldown, overlap):
    length = (1 - warmup - cooldown) * total / (1 + (count - 1) * (1 - overlap))
    # Rounding moves each end by half a step at most: from one step on no window is empty, below it one may be.
    if length < 1 + 1e-6:
        return
    found = windows(list(range(count)), total, warmup, cooldown, overlap)
    assert found[0].start == round(warmup * total)
    assert abs(found[-1].stop - (1 - cooldown) * total) <= 0.5 + 1e-6
    assert all(0 <= window.start < window.stop <= total for window in found)
    for before, after in itertools.pairwise(found):
        assert before.start <= after.start
        assert before.stop <= after.stop
    assert max(map(len, found)) - min(map(len, found)) <= 1


@given(count=UNITS, total=st.integers(1, 5000), warmup=FRACTION, cooldown=FRACTION)
def test_windows_without_overlap_follow_each_other_without_a_gap(count, total, warmup, cooldown):
    if (1 - warmup - cooldown) * total / count < 1 + 1e-6:
        return
    found = windows(list(range(count)), total, warmup, cooldown, 0.0)
    assert all(before.stop == after.start for before, after in itertools.pairwise(found))


def test_a_run_too_short_for_its_windows_is_refused():
    with pytest.raises(ValueError, match="total_steps must give each of 4 windows at least one step, got 3 "):
        windows([0, 1, 2, 3], 3, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("name", ["warmup", "cooldown", "overlap"])
@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan])
def test_fractions_out_of_range_are_named(name, value):
    arguments = {"warmup": 0.0, "cooldown": 0.0, "overlap": 0.0, name: value}
    with pytest.raises(ValueError, match=f"{name} must be in .*got {value}"):
        windows([0, 1], 100, **arguments)


def test_warmup_and_cooldown_must_leave_room():
    with pytest.raises(ValueError, match=r"warmup and cooldown must leave room.*0\.6 \+ 0\.4"):
        windows([0], 100, 0.6, 0.4, 0.0)
