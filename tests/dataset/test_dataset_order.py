"""Every epoch each pack once; a pure function of the iteration; every rank has something to do."""

import pytest

from xtuner.dataset.sampler import Order


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("num_packs", "batch_size"), [(1, 1), (10, 3), (12, 4), (7, 20)])
def test_each_epoch_holds_each_pack_once(num_packs: int, batch_size: int, shuffle: bool) -> None:
    order = Order(num_packs, batch_size, shuffle, seed=3)
    assert order.iters_per_epoch == -(-num_packs // batch_size)
    epochs = []
    for epoch in range(3):
        begin = epoch * order.iters_per_epoch
        batches = [order.rows(begin + step) for step in range(order.iters_per_epoch)]
        assert all(0 < len(batch) <= batch_size for batch in batches)
        epochs.append([row for batch in batches for row in batch])
        assert sorted(epochs[-1]) == list(range(num_packs))
    if num_packs >= 10:
        assert (epochs[0] != epochs[1]) == shuffle


def test_any_iteration_can_be_asked_for_at_any_time() -> None:
    straight = Order(11, 2, True, seed=5)
    seen = [straight.rows(iteration) for iteration in range(40)]
    again = Order(11, 2, True, seed=5)
    assert [again.rows(iteration) for iteration in reversed(range(40))] == seen[::-1]
    assert [Order(11, 2, True, seed=6).rows(iteration) for iteration in range(40)] != seen


@pytest.mark.parametrize(("num_packs", "world"), [(16, 4), (13, 4), (9, 4), (3, 4), (1, 4)])
def test_ranks_share_an_epoch(num_packs: int, world: int) -> None:
    orders = [Order(num_packs, 2, True, seed=0, rank=rank, world=world) for rank in range(world)]
    rows: list[int] = []
    for step in range(orders[0].iters_per_epoch):
        batches = [order.rows(step) for order in orders]
        assert all(batches)
        assert max(map(len, batches)) - min(map(len, batches)) <= 1
        rows += [row for batch in batches for row in batch]
    assert set(rows) == set(range(num_packs))
    left = num_packs % (2 * world)
    repeated = world - left if 0 < left < world else 0
    assert len(rows) == num_packs + repeated
