import pytest
import torch

from megatron_aia.runtime.row_chunks import held_slices, join_held, take_held


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_ranks_hold_every_token_once_and_join_to_the_row(size: int) -> None:
    row = torch.arange(3 * 24).view(3, 24)
    parts = [take_held(row, rank, size, dim=1) for rank in range(size)]
    assert {part.shape for part in parts} == {(3, 24 // size)}
    assert torch.equal(join_held(parts, dim=1), row)
    for rank, part in enumerate(parts):
        positions = torch.cat([torch.arange(s.start, s.stop) for s in held_slices(24, rank, size)])
        assert torch.equal(part[0], positions)
        assert torch.equal(positions, positions.sort().values)


def test_order_is_megatron_cores() -> None:
    row = torch.arange(8)
    assert take_held(row, 0, 2, dim=0).tolist() == [0, 1, 6, 7]
    assert take_held(row, 1, 2, dim=0).tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_causal_work_is_the_same_on_every_rank(size: int) -> None:
    keys_seen = torch.arange(48) + 1
    assert len({int(take_held(keys_seen, rank, size, dim=0).sum()) for rank in range(size)}) == 1


def test_a_row_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(AssertionError):
        held_slices(10, 0, 2)
