import pytest
import torch

from megatron_aia.runtime.context_parallel_slices import join_slices, slice_tensor, slices_of_rank


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_ranks_hold_every_token_once_and_join_to_the_row(size: int) -> None:
    sequence = torch.arange(3 * 24).view(3, 24)
    parts = [slice_tensor(sequence, rank, size, dim=1) for rank in range(size)]
    assert {part.shape for part in parts} == {(3, 24 // size)}
    assert torch.equal(join_slices(parts, dim=1), sequence)
    for rank, part in enumerate(parts):
        positions = torch.cat(
            [torch.arange(s.start, s.stop) for s in slices_of_rank(24, rank, size)]
        )
        assert torch.equal(part[0], positions)
        assert torch.equal(positions, positions.sort().values)


def test_order_is_megatron_cores() -> None:
    sequence = torch.arange(8)
    assert slice_tensor(sequence, 0, 2, dim=0).tolist() == [0, 1, 6, 7]
    assert slice_tensor(sequence, 1, 2, dim=0).tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_causal_work_is_the_same_on_every_rank(size: int) -> None:
    keys_seen = torch.arange(48) + 1
    assert len({int(slice_tensor(keys_seen, rank, size, dim=0).sum()) for rank in range(size)}) == 1


def test_a_row_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(AssertionError):
        slices_of_rank(10, 0, 2)
