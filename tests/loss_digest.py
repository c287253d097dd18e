"""Prints a digest of the losses and weights of short training runs: the same under every version of torch.

    python tests/loss_digest.py

Run it with each of two installations on one machine and compare the lines. They may differ where torch's own kernels
(convolution, BatchNorm, cross entropy) do; what the method defines must not.
"""

import hashlib

import torch
from torch import nn

import stompp_kernels as sk

STEPS = 24
REGIMES = {"ste_free": "identity", "ste": "clip", "vanilla_ste": "approx_sign"}


def linear():
    hidden = (layer for _ in range(2) for layer in (nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()))
    return nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), *hidden, nn.Linear(64, 5))


def convolutional():
    first, second, third = (nn.Conv2d(channels, 32, 3, padding=1) for channels in (3, 32, 32))
    norms = [nn.BatchNorm2d(32) for _ in range(3)]
    before = (first, norms[0], nn.ReLU(), second, norms[1], nn.ReLU(), nn.MaxPool2d(2), third, norms[2], nn.ReLU())
    return nn.Sequential(*before, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))


NETS = {"linear": (linear, (64, 20)), "convolutional": (convolutional, (16, 3, 16, 16))}


def digest(regime, net):
    """Hashes the losses and the final state of one run; a third of the latents start beyond the bounds."""
    build, shape = NETS[net]
    torch.manual_seed(0)
    x, y = torch.randn(shape), torch.randint(5, shape[:1])
    model, _ = sk.prepare(build(), x[:2], latent_std=1.0)
    progression = sk.StoMPP(model, STEPS, regime=regime, surrogate=REGIMES[regime], refresh=4, cooldown=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    result = hashlib.sha256()
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        progression.step()
        result.update(loss.item().hex().encode())
    for name, value in sorted(model.state_dict().items()):
        result.update(name.encode() + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return result.hexdigest()[:16]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for regime in REGIMES:
        for net in NETS:
            print(regime, net, digest(regime, net))
