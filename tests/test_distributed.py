"""Two processes on half of every batch each repeat one process on the whole, and draw its masks without communication.

torch's communication on the CPU (gloo) over localhost. Both processes run all scenarios, so that torch is loaded once.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed_worker import RANKS, SCENARIOS, train_alone
from helpers import assert_same_bits
from models_for_tests import assert_same_masks, make_without_norm
from processes import run_python

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"),
    pytest.mark.filterwarnings("ignore:training ended at step:RuntimeWarning"),
]


def named(prefix):
    return [name for name in SCENARIOS if name.startswith(prefix)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """scenario -> the result of each rank, or the text of its error."""
    directory = tmp_path_factory.mktemp("distributed")
    code = "import distributed_worker; distributed_worker.main()"
    with ThreadPoolExecutor(RANKS) as pool:
        runs = pool.map(lambda rank: run_python(code, rank, directory, OMP_NUM_THREADS="1"), range(RANKS))
        for run in list(runs):
            assert run.returncode == 0, run.stderr
    return {
        name: [torch.load(Path(directory, f"{name} {rank}.pt"), weights_only=False) for rank in range(RANKS)]
        for name in SCENARIOS
    }


@pytest.fixture(scope="module")
def alone():
    return {regime: train_alone(regime) for regime in ("ste_free", "ste")}


@pytest.mark.parametrize("name", [*named("ddp"), *(n for n in named("fsdp") if "eval" not in n)])
def test_two_ranks_repeat_the_run_of_one(name, results, alone):
    for result in results[name]:
        assert isinstance(result, dict), result
    first, second = results[name]
    expected = alone["ste_free" if "ste_free" in name else "ste"]
    for step, masks in enumerate(expected["masks"]):
        assert_same_masks(first["masks"][step], masks, f"step {step}: ")
        assert_same_masks(second["masks"][step], masks, f"step {step}: ")
    losses = (torch.tensor(first["losses"]) + torch.tensor(second["losses"])) / RANKS
    # The sum over the batch is taken in two parts.
    torch.testing.assert_close(losses, torch.tensor(expected["losses"]), rtol=1e-4, atol=1e-4)
    for key, weight in expected["weights"].items():
        assert torch.equal(first["weights"][key], second["weights"][key]), key
        torch.testing.assert_close(first["weights"][key], weight, rtol=1e-4, atol=1e-4)
    assert first["frozen"] == ([] if "nothing frozen" in name else expected["frozen"])
    assert bool(expected["frozen"]) == ("ste_free" in name)


def test_ddp_must_look_for_unused_parameters_in_the_ste_free_regime(results):
    for name in named("refused"):
        for error in results[name]:
            assert isinstance(error, str), name
            assert "Expected to have finished reduction in the prior iteration before starting a new one" in error, (
                error
            )


@pytest.mark.parametrize("name", [n for n in named("fsdp") if "eval" not in n])
def test_the_full_state_of_a_sharded_model_loads_into_a_plain_one(name, results):
    for result in results[name]:
        assert isinstance(result, dict), result
    result = results[name][0]
    model, x = make_without_norm(seed=1)
    model.load_state_dict(result["state"], strict=True)
    _, x = make_without_norm()
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), result["output"])


@pytest.mark.parametrize("name", named("fsdp eval"))
def test_gathered_weights_are_never_served_stale(name, results):
    for outputs in results[name]:
        assert isinstance(outputs, list), outputs
        for index, (packed, simulated) in enumerate(outputs):
            assert_same_bits(packed, simulated, f"run {index}")
            if index:
                assert not torch.equal(packed, outputs[index - 1][0])
