"""Networks of timm, most of them with fewer channels or blocks than under their names."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from corpus import by_torchvision
from corpus.network import Network, images


def _net(name: str, size: int = 32, **options: Any) -> tuple[nn.Module, Any]:
    by_torchvision.load()  # which timm imports
    import timm

    return timm.create_model(name, num_classes=10, **options), images(size)


_SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "resnet10t": {},
    "seresnet18": {},
    "res2net50_26w_4s": {"layers": [1, 1, 1, 1]},
    "skresnet18": {},
    "resnetv2_50": {"layers": (1, 1, 1, 1)},
    "regnety_002": {},
    "mobilenetv4_conv_small": {},
    "efficientnet_lite0": {},
    "lcnet_050": {},
    "mixer_s32_224": {"img_size": 64, "size": 64},
    "resmlp_12_224": {"img_size": 64, "size": 64},
    "vit_tiny_patch16_224": _SMALL_VIT,
    "deit_tiny_distilled_patch16_224": _SMALL_VIT,
    "beit_base_patch16_224": _SMALL_VIT,
    "eva02_tiny_patch14_224": _SMALL_VIT,
    "cait_xxs24_224": {**_SMALL_VIT, "num_heads": 4},
    "swin_tiny_patch4_window7_224": {
        "img_size": 32,
        "window_size": 4,
        "embed_dim": 24,
        "depths": (2, 2),
        "num_heads": (2, 4),
    },
    "poolformer_s12": {"size": 64},
    "convnextv2_atto": {"depths": (1, 1, 1, 1)},
    "mambaout_femto": {"size": 64, "depths": (1, 1, 1, 1)},
    "edgenext_xx_small": {"size": 64, "depths": (1, 1, 2, 1)},
    "fastvit_t8": {"size": 64, "layers": (1, 1, 1, 1)},
}
NETWORKS = [Network(f"timm {name}", "timm", partial(_net, name, **settings)) for name, settings in SETTINGS.items()]
