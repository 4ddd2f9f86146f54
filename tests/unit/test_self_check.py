"""A run's attention is compared with the definition before it starts; a wrong kernel is seen."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from megatron_aia.attention import flash_ops, rectangle, self_check
from megatron_aia.attention.methods import Machine, Method, choose_method
from megatron_aia.attention.self_check import (
    TOLERANCES,
    AttentionSetting,
    check_method,
    largest_error,
)
from megatron_aia.runtime.device import use_flash_attention

FP32, BF16 = torch.float32, torch.bfloat16
CPU = torch.device("cpu")
SHAPE = (8, 2, 64)


def method(name: str, backend: Any = "flash") -> Method:
    return Method(name, "under test", sampled_queries=3, backend=backend)


@pytest.fixture(autouse=True)
def forget_results() -> Iterator[None]:
    largest_error.cache_clear()
    yield
    largest_error.cache_clear()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", ["flash", "sampled"])
@pytest.mark.parametrize("shape", [SHAPE, (4, 4, 80), (1, 1, 128)])
@pytest.mark.parametrize("context_parallel", [False, True])
def test_right_kernels_pass_with_room(
    name: str, dtype: torch.dtype, shape: tuple[int, int, int], context_parallel: bool
) -> None:
    error = largest_error(method(name), AttentionSetting(CPU, dtype, *shape, context_parallel))
    assert 0 < error < TOLERANCES[dtype] / 2


def test_dense_is_the_reference_itself() -> None:
    assert largest_error(method("eager"), AttentionSetting(CPU, FP32, *SHAPE)) == 0


def ignore_the_shifted_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward that forms D of its own output, as one that recomputes the forward would."""
    original = flash_ops.backward

    def backward(
        grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, extras: Any, *rest: Any
    ) -> Any:
        own, _, _ = flash_ops.forward(q, k, v, rest[0])
        return original(grad, q, k, v, own, lse, extras, *rest)

    monkeypatch.setattr(flash_ops, "backward", backward)


def base_two_logarithms(monkeypatch: pytest.MonkeyPatch) -> None:
    original = flash_ops.forward

    def forward(*arguments: Any) -> Any:
        output, lse, extras = original(*arguments)
        return output, lse / 0.6931, extras

    monkeypatch.setattr(flash_ops, "forward", forward)


def lose_the_rectangle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rectangle, "add_rectangles", lambda *_: None)


def not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    original = flash_ops.backward
    monkeypatch.setattr(
        flash_ops, "backward", lambda *a: tuple(x * float("nan") for x in original(*a))
    )


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize(
    "plant", [ignore_the_shifted_output, base_two_logarithms, lose_the_rectangle, not_a_number]
)
def test_a_wrong_kernel_ends_the_run(
    plant: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(ValueError, match=r"--aia-attention flash on the flash kernel has an error"):
        check_method(method("flash"), AttentionSetting(CPU, dtype, *SHAPE), may_change_backend=True)


def test_a_causal_mask_from_the_first_key_shows_where_rows_are_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kernels disagree about a causal mask with more keys than queries."""

    def forward(query: Any, key: Any, value: Any, scale: float, *rest: Any) -> Any:
        output, lse, extras = flash_ops._forward(query, key, value, True, scale, rest[0])
        return output, lse, (extras, extras)

    monkeypatch.setattr(flash_ops, "forward", forward)
    assert largest_error(method("flash"), AttentionSetting(CPU, FP32, *SHAPE)) < TOLERANCES[FP32]
    largest_error.cache_clear()
    shared = AttentionSetting(CPU, FP32, *SHAPE, context_parallel=True)
    assert largest_error(method("flash"), shared) > 0.1


def test_auto_falls_back_to_flash_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    original = rectangle.attend

    def attend(*arguments: Any, backend: Any) -> Any:
        output, sums = original(*arguments)
        return (output * 2 if backend == "cudnn" else output), sums

    monkeypatch.setattr(rectangle, "attend", attend)
    setting = AttentionSetting(CPU, FP32, *SHAPE)
    chosen = check_method(method("flash", "cudnn"), setting, may_change_backend=True)
    assert chosen.backend == "flash"
    assert "exact beside the flash kernel, as cudnn has an error of 1" in str(chosen)
    with pytest.raises(ValueError, match="on the cudnn kernel has an error"):
        check_method(method("flash", "cudnn"), setting, may_change_backend=False)


def test_a_kernel_that_raises_falls_back_as_a_wrong_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = rectangle.attend

    def attend(*arguments: Any, backend: Any) -> Any:
        if backend == "cudnn":
            raise RuntimeError("No valid execution plans built.\nmore of it")
        return original(*arguments)

    monkeypatch.setattr(rectangle, "attend", attend)
    setting = AttentionSetting(CPU, FP32, *SHAPE)
    chosen = check_method(method("flash", "cudnn"), setting, may_change_backend=True)
    assert chosen.backend == "flash"
    assert "as cudnn raises No valid execution plans built. more of it" in str(chosen)
    with pytest.raises(ValueError, match=r"kernel raises No valid .* on this machine;"):
        check_method(method("flash", "cudnn"), setting, may_change_backend=False)


def test_the_run_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_aia.config.files import with_values
    from megatron_aia.models import preset_table
    from megatron_aia.models.layers import attention_method

    config = with_values(preset_table()["emu3_demo"].build(), {"num_attention_heads": 4})
    assert attention_method(config, FP32, 1).name == "flash"
    monkeypatch.setattr(self_check, "largest_error", lambda *_: 1.0)
    with pytest.raises(ValueError, match=r"error of 1.0e\+00 against the definition on this mach"):
        attention_method(config, FP32, 1)


def hopper(**changes: Any) -> Machine:
    fields: dict[str, Any] = {"capability": (9, 0), "has_cudnn_attention": True, **changes}
    return Machine("cuda", BF16, fields.pop("head_size", 128), **fields)


@pytest.mark.parametrize(
    ("machine", "asked", "backend"),
    [
        (hopper(), "auto", "cudnn"),
        (hopper(), "flash", "flash"),
        (hopper(), "cudnn", "cudnn"),
        (hopper(head_size=256), "auto", "flash"),
        (hopper(has_cudnn_attention=False), "auto", "flash"),
        (hopper(flash_packages=("flash3", "flash4")), "auto", "cudnn"),
        (hopper(flash_packages=("flash3", "flash4")), "flash4", "flash4"),
        (Machine("cpu", FP32, 128), "auto", "flash"),
    ],
)
def test_which_kernel(machine: Machine, asked: Any, backend: str) -> None:
    for name in ("auto", "flash", "sampled"):
        assert choose_method(name, machine, backend=asked).backend == backend
    for name in ("flash", "sampled"):
        attend: Any = choose_method(name, machine, backend=asked).build(0, 0)
        kernel = attend.keywords["backend"] if name == "flash" else attend.__self__.backend
        assert kernel == backend


def test_a_kernel_that_cannot_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--attention-backend cudnn needs a GPU of compute cap"):
        choose_method("auto", hopper(has_cudnn_attention=False), backend="cudnn")
    with pytest.raises(ValueError, match=r"--attention-backend flash4 needs .* or pass auto"):
        choose_method("auto", hopper(flash_packages=("flash3",)), backend="flash4")


def test_a_package_that_does_not_load_is_one_line() -> None:
    for name in ("flash3", "flash4"):
        with pytest.raises(ValueError, match=f"--attention-backend {name} cannot load flash_attn"):
            use_flash_attention(name)
    use_flash_attention("cudnn")
    use_flash_attention("flash")
