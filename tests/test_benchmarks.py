"""What the benchmarks compare is the same computation, and their summaries say what the rows do."""

import torch

import stompp_kernels as sk
from benchmarks import timing, training_speed


def small_model():
    torch.manual_seed(0)
    x = torch.randn(4, 1, 8, 8)
    model, _ = sk.prepare(sk.models.SmallResNet(), x[:1])
    return model, x


def test_the_plain_network_computes_what_an_uncommitted_one_does():
    model, x = small_model()
    soft, plain = training_speed.commit(model, 0.0).train(), training_speed.plain(model).train()
    labels = torch.tensor([1, 2, 3, 4])
    for network in (soft, plain):
        torch.nn.functional.cross_entropy(network(x), labels).backward()
    assert torch.equal(soft(x), plain(x))
    gradients = {name: p.grad for name, p in soft.named_parameters()}
    assert all(torch.equal(p.grad, gradients[name]) for name, p in plain.named_parameters())


def test_less_is_kept_for_backward_the_more_is_committed():
    model, x = small_model()
    kept = [
        training_speed.kept_bytes(training_speed.commit(model, f), x, torch.tensor([1, 2, 3, 4]))
        for f in training_speed.FRACTIONS
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < kept[0] / 2


def row(ours, other, threads=1, name="case"):
    ms = {"ours": {"median": ours}, "other": {"median": other}}
    return {"group": "g", "name": name, "threads": threads, "ms": ms, "ratios": {"other": other / ours}}


def test_of_several_rounds_the_one_with_the_fastest_other_side_counts():
    rounds = [row(1.0, 5.0), row(2.0, 4.0), row(0.5, 6.0), row(1.0, 3.0, name="another")]
    assert timing.quietest(rounds) == [rounds[1], rounds[3]]


def test_scaling_is_the_time_with_fewest_threads_over_that_with_more():
    text = timing.scaling([row(4.0, 9.0, 1), row(2.0, 5.0, 2), row(9.0, 9.0, 1, "b"), row(3.0, 9.0, 2, "b")])
    assert text.splitlines()[-1].split() == ["g", "2", "2.45x", "2.00x", "3.00x"]
