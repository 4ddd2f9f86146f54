"""What the environment is told before CUDA starts, and what megatron-core is told about fusion."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from megatron_aia.runtime import device, mcore


@pytest.mark.parametrize(
    ("size", "before", "after"), [(4, None, "1"), (4, "8", "8"), (1, None, None)]
)
def test_collectives_keep_their_order_where_layers_are_shared(
    size: int, before: str | None, after: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "CUDA_DEVICE_MAX_CONNECTIONS"
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    device.order_collectives(size)
    assert os.environ.get(name) == after
    monkeypatch.delenv(name, raising=False)


def test_asking_for_a_gpu_does_not_start_cuda() -> None:
    code = (
        "import os; import megatron_aia.runtime.device as d; d.has_cuda(); import torch;"
        "print(os.environ['PYTORCH_NVML_BASED_CUDA_CHECK'], torch.cuda.is_initialized())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["1", "False"]


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_only_what_keeps_the_precision_is_fused(
    cuda: bool, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcore, "has_cuda", lambda: cuda)
    monkeypatch.setattr(mcore, "has_weight_gradient_kernel", lambda: False)
    options: dict[str, Any] = mcore.decoder_options(interleaved=False, bf16=bf16)
    assert options["cross_entropy_loss_fusion"] == (cuda and bf16)
    assert options["bias_activation_fusion"] == cuda
    assert not options["gradient_accumulation_fusion"]
    assert not mcore.transformer_options(interleaved=False)["bias_activation_fusion"]


@pytest.mark.parametrize(
    ("local", "asked", "limited"),
    [(None, None, False), ("1", None, False), ("2", None, True), ("2", "3", False)],
)
def test_processes_that_share_cores_take_a_thread_each(
    local: str | None, asked: str | None, limited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LOCAL_WORLD_SIZE", local), ("OMP_NUM_THREADS", asked)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    threads: list[int] = []
    monkeypatch.setattr(device, "has_cuda", lambda: False)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    device.bind_device()
    assert threads == [1] * limited
