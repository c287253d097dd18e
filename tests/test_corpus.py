"""A quick sample of the corpus goes all the way; `make corpus` takes every network, and writes docs/corpus.csv."""

import csv
import importlib.util

import pytest
from corpus import by_hand, by_strangers, by_timm, by_torchvision, by_transformers
from corpus.__main__ import COLUMNS, NETWORKS, TABLE
from corpus.journey import travel

SAMPLE = [
    *(network for network in by_hand.NETWORKS if network.name in ("MeliusNet", "M5 for keywords", "DCGAN generator")),
    *(network for network in by_strangers.NETWORKS if network.name in ("SegNet", "message passing")),
    *(network for network in by_torchvision.NETWORKS if network.name == "torchvision vit"),
    *(network for network in by_timm.NETWORKS if network.name == "timm mixer_s32_224"),
    *(network for network in by_transformers.NETWORKS if network.name == "transformers GPT-2"),
]


@pytest.mark.sweep(3)
@pytest.mark.parametrize("network", SAMPLE, ids=lambda network: network.name)
def test_a_sample_goes_through_all_stages(network):
    library = "torch" if network.family.startswith("by ") else network.family
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}: pip install --no-deps {library}")
    journey = travel(network)
    assert not journey.failures
    assert journey.reached == ["prepare", "train", "convert", "save and load", "export"]
    assert journey.binarized > 0


def test_the_table_has_networks_of_the_corpus_only():
    names = [network.name for network in NETWORKS]
    assert len(names) == len(set(names))
    assert len(names) >= 60
    with open(TABLE, newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == COLUMNS
    assert {row[0] for row in rows} <= set(names)
