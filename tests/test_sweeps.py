"""What `make test` runs of the tests marked `sweep`."""

from collections import Counter

from conftest import mark_sweeps


class Variant:
    """As much of a collected test as the marking reads."""

    path = "test_any.py"
    originalname = "test_any"

    def __init__(self, implementation, index, every, slow=False):
        self.name = f"test_any[{implementation}-{index}]"
        self.callspec = self
        self.params = {"implementation": implementation, "index": index}
        self.every = every
        self.slow = slow

    @property
    def args(self):
        return (self.every,)

    def get_closest_marker(self, name):
        return self if {"sweep": self.every, "slow": self.slow}[name] else None

    def add_marker(self, mark):
        self.slow = self.slow or mark.name == "slow"


def test_some_of_each_implementation_stay_and_the_same_ones_whatever_the_order():
    items = [Variant(name, index, 3) for index in range(10) for name in ("scalar", "avx2")]
    mark_sweeps(items)
    assert Counter(item.params["implementation"] for item in items if not item.slow) == {"scalar": 4, "avx2": 4}

    backwards = [Variant(item.params["implementation"], item.params["index"], 3) for item in reversed(items)]
    mark_sweeps(backwards)
    assert {item.name for item in backwards if item.slow} == {item.name for item in items if item.slow}


def test_one_of_few_stays_and_other_tests_are_left_alone():
    few, others = [Variant("scalar", index, 5) for index in range(2)], [Variant("scalar", 0, None)]
    mark_sweeps([*few, *others])
    assert sum(item.slow for item in few) == 1
    assert not others[0].slow


def test_what_is_slow_anyway_is_none_of_those_that_stay():
    items = [Variant("scalar", index, 3, slow=index < 2) for index in range(3)]
    mark_sweeps(items)
    assert [item.slow for item in items] == [True, True, False]
