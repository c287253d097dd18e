"""What each process of tests/test_distributed.py runs; results go to a file per scenario and rank."""

import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from models_for_tests import batch, binary_layers, make_without_norm, masks
from torch import nn

import stompp_kernels as sk

STEPS, SIZE, RANKS = 15, 8, 2
REGIMES = {"ste_free": {"regime": "ste_free"}, "ste": {"regime": "ste", "surrogate": "clip"}}


def start(model, regime, **options):
    return sk.StoMPP(model, STEPS, refresh=2, cooldown=0.2, **REGIMES[regime], **options)


def whole(tensor):
    """All of a tensor, of which each rank may hold a shard."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


def train(forward, model, progression, rank=0, ranks=1):
    """A run on this rank's part of every batch: its losses, the masks after each step, the weights at the end."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    losses, steps, moved = [], [], []
    for step in range(STEPS):
        x, y = (t.chunk(ranks)[rank] for t in batch(step, SIZE))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(forward(x), y)
        loss.backward()
        dead = [(p, whole(p)) for n, p in model.named_parameters() if n in progression.without_gradient()]
        optimizer.step()
        moved.append(any(p.grad is not None or not torch.equal(whole(p), before) for p, before in dead))
        progression.step()
        losses.append(loss.item())
        steps.append({n.removeprefix("module."): m for n, m in masks(model).items()})
    assert progression.fully_committed
    assert not any(moved), "what a commitment cut off has moved"
    return {
        "losses": losses,
        "masks": steps,
        "weights": {n.removeprefix("module."): whole(p) for n, p in model.named_parameters()},
        "frozen": sorted(n.removeprefix("module.") for n, p in model.named_parameters() if not p.requires_grad),
    }


def train_alone(regime):
    model, _ = make_without_norm()
    return train(model, model, start(model, regime))


def train_ddp(rank, regime, wrapped=False, freeze_prefix=True, **options):
    model, _ = make_without_norm()
    ddp = nn.parallel.DistributedDataParallel(model, **options)
    progression = start(ddp if wrapped else model, regime, freeze_prefix=freeze_prefix)
    return train(ddp, ddp if wrapped else model, progression, rank, RANKS)


def shard(model):
    """FSDP2 with a group for each binary layer and one for the rest."""
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (RANKS,))
    for layer in binary_layers(model).values():
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train_fsdp(rank, regime, before):
    """The progression is made before or after the parameters are sharded."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.tensor import DTensor

    model, x = make_without_norm()
    progression = start(model, regime) if before else None
    shard(model)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    result = train(model, model, progression or start(model, regime), rank, RANKS)
    with torch.no_grad():
        result["output"] = model.eval()(x)
    result["state"] = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return result


def evaluate_fsdp(rank, change):
    """Outputs of a committed model whose sharded weights change between two runs in eval mode; on bits and in float."""
    model, x = make_without_norm()
    if change == "training":
        start(model, "ste")
    for layer in binary_layers(model).values():
        layer.commit()
        layer.activation.commit()
    shard(model).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    outputs = []
    for _ in range(4):
        with torch.no_grad():
            packed = model(x)
            with sk.float_simulation():
                outputs.append((packed, model(x)))
        if change == "training":
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        elif change == "in place":
            with torch.no_grad():
                for layer in binary_layers(model).values():
                    layer.reshard()
                    layer.weight.neg_()
        else:
            model.load_state_dict({n: -t if n.endswith("1.weight") else t for n, t in model.state_dict().items()})
    return outputs


SCENARIOS = {
    "ddp ste_free": lambda rank: train_ddp(rank, "ste_free", find_unused_parameters=True),
    "ddp ste_free, wrapper given": lambda rank: train_ddp(rank, "ste_free", True, find_unused_parameters=True),
    "ddp ste_free, nothing frozen": lambda rank: train_ddp(
        rank, "ste_free", freeze_prefix=False, find_unused_parameters=True
    ),
    "ddp ste_free, no broadcast": lambda rank: train_ddp(
        rank, "ste_free", find_unused_parameters=True, broadcast_buffers=False
    ),
    "ddp ste_free, bucket views": lambda rank: train_ddp(
        rank, "ste_free", find_unused_parameters=True, gradient_as_bucket_view=True
    ),
    "ddp ste": lambda rank: train_ddp(rank, "ste"),
    "ddp ste, no broadcast": lambda rank: train_ddp(rank, "ste", broadcast_buffers=False),
    "ddp ste, static graph": lambda rank: train_ddp(rank, "ste", static_graph=True),
    "fsdp ste_free, sharded first": lambda rank: train_fsdp(rank, "ste_free", False),
    "fsdp ste_free, sharded last": lambda rank: train_fsdp(rank, "ste_free", True),
    "fsdp ste, sharded first": lambda rank: train_fsdp(rank, "ste", False),
    "fsdp ste, sharded last": lambda rank: train_fsdp(rank, "ste", True),
    "fsdp eval, in place": lambda rank: evaluate_fsdp(rank, "in place"),
    "fsdp eval, loading": lambda rank: evaluate_fsdp(rank, "loading"),
    "fsdp eval, training": lambda rank: evaluate_fsdp(rank, "training"),
    "refused ddp ste_free, unused not looked for": lambda rank: train_ddp(rank, "ste_free"),
    "refused ddp ste_free, nothing frozen": lambda rank: train_ddp(rank, "ste_free", freeze_prefix=False),
    "refused ddp ste_free, static graph": lambda rank: train_ddp(rank, "ste_free", static_graph=True),
}


def main():
    rank, directory = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    for index, (name, scenario) in enumerate(SCENARIOS.items()):
        store = dist.FileStore(str(directory / f"rendezvous {index}"), RANKS)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=20))
        try:
            result = scenario(rank)
        except Exception:
            result = traceback.format_exc()
        torch.save(result, directory / f"{name} {rank}.pt")
        dist.destroy_process_group()
    os._exit(0)  # no thread that a refused scenario left behind holds the process up
