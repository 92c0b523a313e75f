"""Two gloo processes with half the batch each are one process with the whole."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import runs
import torch
from evaluation_list import EVALUATIONS, batches
from method_list import METHODS

WORKER = Path(__file__).parents[1] / "support" / "ddp_worker.py"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of the two processes found; one pair runs the whole list."""
    folder = tmp_path_factory.mktemp("ddp")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    logs = [open(folder / f"log{r}", "w+") for r in range(2)]  # noqa: SIM115
    pair = [
        subprocess.Popen(
            [sys.executable, WORKER, folder], env={**shared, "LOCAL_RANK": str(r)}, stdout=logs[r], stderr=logs[r]
        )
        for r in range(2)
    ]
    try:
        codes = [p.wait(timeout=300) for p in pair]
    finally:
        for p in pair:
            p.kill()
    assert codes == [0, 0], "\n".join(Path(log.name).read_text()[-3000:] for log in logs)
    return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in range(2)]


@pytest.mark.parametrize("name", METHODS)
def test_pair_has_the_loss_and_gradients_of_one_process(ranks, name):
    for found in ranks:
        (loss, gradients), (pair_loss, pair_gradients) = found[name]["alone"], found[name]["pair"]
        assert loss > 0
        torch.testing.assert_close(pair_loss, loss, rtol=1e-6, atol=1e-8)
        assert len(gradients) == len(pair_gradients) > 4
        assert any(g.abs().max() > 1e-4 for g in gradients)
        for pair, alone in zip(pair_gradients, gradients, strict=True):
            torch.testing.assert_close(pair, alone, rtol=1e-6, atol=1e-8)


def test_gather_sums_the_gradients_of_all_ranks(ranks):
    # Rank r's loss weighs entry j of everyone's rows with (1 + r)·j: the gradient sums both ranks' weights.
    weights = torch.arange(1.0, 13.0).view(6, 2) * 3
    for r, found in enumerate(ranks):
        torch.testing.assert_close(found["gather gradient"], weights[3 * r : 3 * r + 3])


def test_shuffling_bn_normalises_keys_among_images_of_all_ranks_and_returns_them_in_order(ranks):
    for found in ranks:
        torch.testing.assert_close(found["shuffled"]["keys"], found["shuffled"]["by_hand"])


@pytest.mark.parametrize("name", METHODS)
def test_both_ranks_end_with_the_same_parameters_queue_probe_and_bank(ranks, name):
    first, second = (found[name]["fitted"] for found in ranks)
    for key in ("parameters", "probe", "queue"):
        if first[key] is not None:
            assert first[key].keys() == second[key].keys()
            for k in first[key]:
                assert torch.equal(first[key][k], second[key][k]), (key, k)
    assert torch.equal(first["bank"], second["bank"])
    assert first["metrics"] == second["metrics"]
    assert first["metrics"].keys() == {"probe/val_accuracy", "probe/knn/val_accuracy"}
    for a, b in zip(first["queues"], second["queues"], strict=True):
        assert torch.equal(a, b)


def test_queue_under_ddp_holds_the_keys_of_both_ranks(ranks):
    queue = ranks[0]["MoCo"]["fitted"]["queue"]
    assert queue["pointer"] == 3 * 2 * 2 * 4 % 40  # 3 optimizer steps x 2 accumulated batches x 2 ranks x 4 images
    torch.testing.assert_close(queue["features"].norm(dim=1), torch.ones(40))
    assert len({round(v, 5) for v in queue["features"][:, 0].tolist()}) == 40


@pytest.mark.parametrize("name", EVALUATIONS)
def test_a_pair_measures_what_one_process_does_on_all_images(ranks, name, tmp_path):
    first, second = (found["evaluations"][name] for found in ranks)
    assert runs.same_bits(first["state"], second["state"])
    assert first["values"] == second["values"]
    make, examples = EVALUATIONS[name]
    alone = make()
    alone.load_state_dict(first["state"])
    run = runs.trainer(tmp_path)
    run.validate(alone, batches(examples(16, seed=1), 16), verbose=False)
    assert any(value > 0 for value in first["values"].values())
    for measure, value in first["values"].items():
        assert run.callback_metrics[measure] == pytest.approx(value, abs=1e-6), measure


def test_both_processes_stop_at_the_same_batch_and_say_which_of_them_met_the_loss_that_is_not_finite(ranks):
    first, second = (found["diverged"] for found in ranks)
    assert first == second
    assert first["batches"] == 3
    assert first["sentence"].startswith("the loss is nan at batch 1 of epoch 0 (optimizer step 2, process 1);")


@pytest.mark.parametrize(("stage", "steps"), [("training", {7, 8, 9}), ("validation", {5})])
def test_a_signal_to_one_process_stops_both_at_one_step_and_they_go_on_to_the_bit(ranks, stage, steps):
    for found in (rank[f"interrupted in {stage}"] for rank in ranks):
        assert found["code"] == 143
        assert found["step"] in steps
        assert runs.same_bits(found["resumed"], found["whole"])
