"""Samples of ids with roles: a causal model without a processor, against its eager maps."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.tools import run_tool

from megatron_aia.measurement.curves import read_samples

IMAGE = [90, 91]
SAMPLE: dict[str, Any] = {
    "sample": "a",
    "task": "generation",
    "input_ids": [1, 5, 6, 7, 90, 91, 90, 2],
    "queries": "image",
    "keys": [[0, 2], [1, 4]],
}
OTHER = {**SAMPLE, "sample": "b", "task": "understanding", "queries": [[7, 8]], "keys": "image"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    config = transformers.LlamaConfig(
        **{"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 16},
    )
    folder = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def run(llama: Path, tmp_path: Path, *samples: Any, flags: tuple[object, ...] = ()) -> Any:
    lines = [sample if isinstance(sample, str) else json.dumps(sample) for sample in samples]
    (tmp_path / "roles.jsonl").write_text("\n".join(lines) + "\n")
    given = ("--hf-path", llama, "--data-path", tmp_path / "roles.jsonl")
    return run_tool("measure_intensity", *given, "--output", tmp_path / "out", *flags)


def test_equal_to_eager_maps(llama: Path, tmp_path: Path) -> None:
    code, out, err = run(llama, tmp_path, SAMPLE, OTHER, flags=("--image-token-ids", *IMAGE))
    assert code == 0, err
    assert "generation: 1 of 1 samples" in out
    model = transformers.AutoModelForCausalLM.from_pretrained(llama, attn_implementation="eager")
    with torch.no_grad():
        maps = model(torch.tensor([SAMPLE["input_ids"]]), output_attentions=True).attentions
    image, prompt, answer = torch.arange(4, 7), torch.arange(4), torch.tensor([7])
    for found, queries, keys in zip(
        read_samples(tmp_path / "out" / "intensity.jsonl"),
        (image, answer),
        (prompt, image),
        strict=True,
    ):
        expected = [m[0][:, queries][:, :, keys].sum(-1).mean().item() for m in maps]
        assert found.intensity == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ({**SAMPLE, "more": 1}, "line 1: has sample, task, input_ids, queries, keys, more; give"),
        ({**SAMPLE, "task": "text"}, "line 1: task is 'text'; use generation or understanding"),
        ({**SAMPLE, "input_ids": [1, -2]}, "line 1: input_ids must be a list of ids"),
        ({**SAMPLE, "queries": [[4, 9]]}, "line 1: queries is [[4, 9]]; give ranges"),
        (
            {**SAMPLE, "queries": [[4, 5]], "keys": [[2, 2]]},
            "line 1: keys is [[2, 2]]; give ranges",
        ),
        (SAMPLE, 'line 1: queries are "image"; say which ids by --image-token-ids'),
        ({**OTHER, "keys": []}, "0 of 1 samples: 1 no key"),
        ({**OTHER, "keys": [[0, 1]], "queries": []}, "0 of 1 samples: 1 no query"),
        (
            {**OTHER, "keys": [[7, 8]], "queries": [[0, 7]]},
            "0 of 1 samples: 1 no query after a key",
        ),
    ],
)
def test_a_wrong_line_is_named(llama: Path, tmp_path: Path, sample: Any, said: str) -> None:
    code, _, err = run(llama, tmp_path, sample)
    assert code == 2
    assert said in err


def test_flags(llama: Path, tmp_path: Path) -> None:
    sample = {**SAMPLE, "queries": [[4, 6]]}
    for flags, said in (
        (("--max-length", 5), "1 longer than 5 tokens"),
        (("--tokenizer", llama), "a role file holds ids; leave --tokenizer out"),
    ):
        code, _, err = run(llama, tmp_path, sample, flags=flags)
        assert code == 2
        assert said in err
    code, _, err = run_tool(
        *("measure_intensity", "--load", llama, "--data-path", tmp_path / "roles.jsonl"),
        *("--output", tmp_path / "x"),
    )
    assert code == 2
    assert "holds ids; --load reads samples" in err
