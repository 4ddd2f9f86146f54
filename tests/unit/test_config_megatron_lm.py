"""A command line of Megatron-LM gets an answer, never a wrong hint."""

import pytest

from megatron_aia.cli import parse
from megatron_aia.config import Config
from megatron_aia.config.files import settings_by_name
from megatron_aia.config.megatron_lm import ANSWERS, answer
from megatron_aia.models import fields_of_families

COMMAND_LINE = (
    "--swiglu --normalization RMSNorm --use-flash-attn --disable-bias-linear --no-load-optim "
    "--train-samples 1000 --split 969,30,1 --wandb-project mine --moe-router-topk 2"
)


@pytest.mark.parametrize("flag", sorted(ANSWERS))
def test_no_answer_hides_a_flag_that_exists(flag):
    settings = settings_by_name(Config())
    flags = {setting.flag for setting in settings.values()}
    negated = {f"--no-{s.flag[2:]}" for s in settings.values() if s.kind.base is bool}
    assert flag not in flags | negated
    assert flag[2:].replace("-", "_") not in fields_of_families()
    assert "\n" not in ANSWERS[flag] and ANSWERS[flag]


def test_the_flags_that_answers_point_to_exist():
    flags = {setting.flag for setting in settings_by_name(Config()).values()}
    pointed = {
        word.strip(";:,().") for text in ANSWERS.values() for word in text.split() if "--" in word
    }
    assert pointed <= flags


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--swiglu", "always on"),
        ("--use-flash-attn", "--attention-backend"),
        ("--no-load-optim", "--finetune"),
        ("--train-samples", "--train-iters"),
        ("--wandb-project", "--tensorboard-dir"),
        ("--moe-router-topk", "no experts"),
        ("--tp", "--tensor-model-parallel-size"),
    ],
)
def test_one_flag_of_megatron(flag, expected):
    assert expected in (answer(flag) or "")
    with pytest.raises(ValueError, match=rf"^unknown option {flag}; .*{expected}") as error:
        parse([flag, "1"])
    assert "did you mean" not in str(error.value)


def test_a_whole_command_line_of_megatron_is_answered_at_once():
    with pytest.raises(ValueError, match=r"^unknown options: --swiglu ") as error:
        parse(COMMAND_LINE.split())
    line = str(error.value)
    named = [word for word in COMMAND_LINE.split() if word.startswith("--")]
    assert all(f"{name} (" in line for name in named)
    assert "\n" not in line and "did you mean" not in line


@pytest.mark.parametrize("flag", ["--version", "--zzz", "--foo-bar-baz"])
def test_a_flag_that_resembles_none_gets_no_hint(flag):
    with pytest.raises(ValueError, match=f"^unknown option {flag}; see --help$"):
        parse([flag])
