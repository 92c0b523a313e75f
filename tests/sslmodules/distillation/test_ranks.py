"""Statistics of the whole batch on two ranks that hold different numbers of rows. This file is also what they run."""

import os
import socket
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from sslmodules.distillation.center import Center
from sslmodules.distillation.losses import koleo, sinkhorn_knopp

SPLIT = [3, 5]


def scores():
    return F.normalize(torch.randn(8, 6, generator=torch.Generator().manual_seed(0)))


def run(rank):
    """Each rank's part: what it finds, with rows of its own."""
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    mine = scores().split(SPLIT)[rank]
    center, uncollected, patches = Center(6), Center(6), Center(6)
    center.collect(mine)
    center.commit()
    uncollected.commit()  # no rank waits for the other
    patches.collect(mine if rank else mine[:0])
    patches.commit()
    even = scores().chunk(2)[rank].requires_grad_()
    loss = koleo(even, gather_ranks=True)
    loss.backward()
    return {
        "center": center.value,
        "patches": patches.value,
        "sinkhorn": sinkhorn_knopp(mine, 0.1),
        "nothing": sinkhorn_knopp(mine if rank else mine[:0], 0.1),
        "koleo": loss.detach(),
        "koleo gradient": even.grad / 2,  # as DDP averages
        "koleo per rank": koleo(scores().chunk(2)[rank]),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    line = [sys.executable, __file__, str(folder)]
    pair = [subprocess.Popen(line, env={**shared, "RANK": str(r)}, stderr=subprocess.PIPE) for r in range(2)]
    try:
        errors = [p.communicate(timeout=120)[1].decode() for p in pair]
    finally:
        for p in pair:
            p.kill()
    assert [p.returncode for p in pair] == [0, 0], "\n".join(errors)
    return [torch.load(folder / f"{r}.pt", weights_only=True) for r in range(2)]


def test_centre_is_the_mean_over_all_rows_of_all_ranks(ranks):
    for found in ranks:
        torch.testing.assert_close(found["center"], 0.1 * scores().mean(0))
        torch.testing.assert_close(found["patches"], 0.1 * scores()[3:].mean(0))
    assert torch.equal(ranks[0]["center"], ranks[1]["center"])


def test_sinkhorn_is_that_of_the_whole_batch_also_where_a_rank_has_no_rows(ranks):
    torch.testing.assert_close(torch.cat([found["sinkhorn"] for found in ranks]), sinkhorn_knopp(scores(), 0.1))
    torch.testing.assert_close(torch.cat([found["nothing"] for found in ranks]), sinkhorn_knopp(scores()[3:], 0.1))


def test_koleo_over_ranks_is_that_of_the_whole_batch_with_its_gradient_and_per_rank_by_default(ranks):
    x = scores().requires_grad_()
    whole = koleo(x)
    whole.backward()
    torch.testing.assert_close(sum(found["koleo"] for found in ranks) / 2, whole.detach())
    torch.testing.assert_close(torch.cat([found["koleo gradient"] for found in ranks]), x.grad)
    for found, part in zip(ranks, scores().chunk(2), strict=True):
        torch.testing.assert_close(found["koleo per rank"], koleo(part))


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    torch.save(run(rank), f"{sys.argv[1]}/{rank}.pt")
