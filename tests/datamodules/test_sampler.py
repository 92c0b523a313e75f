"""The order of the data by itself, without a Trainer."""

import pytest
import torch

from sslmodules.datamodules import ResumableLoader, ResumableSampler


def loader(size=22, batch_size=4, workers=0, persistent=False, drop_last=True, limit=1.0, **sampler):
    data = torch.arange(size)
    return ResumableLoader(
        data,
        batch_size,
        ResumableSampler(data, **sampler),
        limit=limit,
        drop_last=drop_last,
        num_workers=workers,
        persistent_workers=persistent,
    )


def batches(from_loader, epochs):
    return [batch.tolist() for _ in range(epochs) for batch in from_loader]


def test_an_epoch_holds_every_index_once_and_the_next_another_order():
    sampler = ResumableSampler(range(50))
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


def test_the_order_is_a_function_of_seed_and_epoch():
    assert list(ResumableSampler(range(50), seed=3)) == list(ResumableSampler(range(50), seed=3))
    assert list(ResumableSampler(range(50), seed=3)) != list(ResumableSampler(range(50), seed=4))
    sampler = ResumableSampler(range(50), seed=3)
    list(sampler)
    assert list(sampler) == list(ResumableSampler(range(50), seed=3, epoch=1))
    assert list(ResumableSampler(range(50), seed=3, epoch=1)) != list(ResumableSampler(range(50), seed=4, epoch=0))


def test_set_epoch_changes_nothing():
    sampler = ResumableSampler(range(50))
    sampler.set_epoch(7)
    assert list(sampler) == list(ResumableSampler(range(50)))


@pytest.mark.parametrize("size", [20, 21])
def test_two_ranks_cover_every_sample_once_and_draw_equally_many(size):
    ranks = [list(ResumableSampler(range(size), num_replicas=2, rank=rank)) for rank in (0, 1)]
    assert [len(rank) for rank in ranks] == [-(-size // 2)] * 2
    drawn = sorted(ranks[0] + ranks[1])
    assert set(drawn) == set(range(size))
    assert len(drawn) - size == size % 2  # the one that wraps


def test_a_dataset_smaller_than_the_ranks_wraps_more_than_once():
    assert [list(ResumableSampler(range(1), num_replicas=3, rank=rank)) for rank in range(3)] == [[0]] * 3


@pytest.mark.parametrize(("images", "labeled"), [(10, 3), (3, 10)])
def test_labeled_images_cycle_over_epochs(images, labeled):
    sampler = ResumableSampler(range(images), pairs=labeled)
    seen = set()
    for epoch in range(labeled):
        pairs = list(sampler)
        assert all(j == (i + epoch * images) % labeled for i, j in pairs)
        assert sorted(i for i, _ in pairs) == list(range(images))
        seen |= {j for _, j in pairs}
    assert seen == set(range(labeled))


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_a_loader_continues_after_any_batch(workers, persistent, drop_last):
    options = {"size": 14, "workers": workers, "persistent": persistent, "drop_last": drop_last}
    whole = batches(loader(**options), 3)
    length = len(whole) // 3
    for stop in (1, length - 1, length, length + 1, 2 * length):
        stopped, seen = loader(**options), []
        while len(seen) < stop:
            for batch in stopped:
                seen.append(batch.tolist())
                if len(seen) == stop:
                    break
        resumed = loader(**options)
        resumed.load_state_dict(stopped.state_dict())
        rest = []
        while len(rest) < len(whole) - stop:
            rest.extend(batch.tolist() for batch in resumed)
        assert seen + rest == whole


def test_an_iterator_that_delivered_nothing_leaves_the_epoch_alone():
    for workers in (0, 2):
        asked = loader(workers=workers)
        iter(asked)
        iter(asked)
        assert batches(asked, 1) == batches(loader(), 1)


def test_the_state_is_that_of_the_batch_delivered_and_not_of_those_fetched_ahead():
    ahead = loader(workers=2)
    next(iter(ahead))
    assert ahead.state_dict() == {"epoch": 0, "position": 4}


def test_the_number_of_workers_may_change_on_resume():
    whole = batches(loader(), 1)
    stopped = loader(workers=2)
    next(iter(stopped))
    resumed = loader(workers=0)
    resumed.load_state_dict(stopped.state_dict())
    assert batches(resumed, 1) == whole[1:]


def test_another_number_of_processes_continues_without_seeing_an_image_twice():
    one = loader(size=24, batch_size=4)
    iterator = iter(one)
    seen = [index for _ in range(2) for index in next(iterator).tolist()]
    for rank in (0, 1):
        part = loader(size=24, batch_size=2, num_replicas=2, rank=rank)
        part.load_state_dict(one.state_dict())
        seen += [index for batch in part for index in batch.tolist()]
    assert sorted(seen) == list(range(24))


def test_a_limit_ends_the_epoch_for_the_resumed_loader_too():
    stopped = loader(limit=2)
    iterator = iter(stopped)
    next(iterator), next(iterator)
    resumed = loader(limit=2)
    resumed.load_state_dict(stopped.state_dict())
    assert next(iter(resumed)).tolist() == next(iter(loader(epoch=1))).tolist()


def test_a_state_of_another_loader_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="another kind of training loader"):
        loader().load_state_dict({"_snapshot": {}})


@pytest.mark.parametrize("workers", [0, 2])
def test_the_sampler_alone_resumes_in_torchdata_loaders(workers):
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def make():
        data = torch.arange(20)
        return stateful(data, batch_size=4, sampler=ResumableSampler(data), num_workers=workers)

    whole = batches(make(), 2)
    stopped = make()
    iterator = iter(stopped)
    seen = [next(iterator).tolist() for _ in range(3)]
    resumed = make()
    resumed.load_state_dict(stopped.state_dict())
    assert seen + batches(resumed, 2) == whole
