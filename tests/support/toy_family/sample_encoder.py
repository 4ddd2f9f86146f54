"""How the toy writes a sample: text is predicted as ids, and codes as vectors of fixed numbers."""

from dataclasses import replace

import numpy as np

from megatron_aia.aia.roles import Task
from megatron_aia.data.sample import SampleEncoder, TokenizedSample
from megatron_aia.data.targets import NEXT_TOKEN, Target
from megatron_aia.data.token_names import TokenNames
from megatron_aia.data.tokenizer import TextTokenizer
from megatron_aia.models.sample_builder import Kind, SampleBuilder, split_at_tags
from megatron_aia.shards.raw_sample import RawSample

VECTOR = "vector"
TEACHER = "teacher"


class ToySampleEncoder(SampleEncoder):
    """Bytes of text, then codes behind them; a generation sample takes lane 1."""

    def __init__(
        self, tokenizer: TextTokenizer, text_size: int, codebook_size: int, vector_size: int
    ) -> None:
        self._tokenizer = tokenizer
        self._text_size, self._codebook_size = text_size, codebook_size
        self._vectors = np.random.default_rng(0).normal(size=(codebook_size, vector_size))
        self.pad_id = text_size + codebook_size
        self.targets = {NEXT_TOKEN: 0, VECTOR: vector_size, TEACHER: 0}
        self.fingerprint = f"toy|{tokenizer.fingerprint}|{vector_size}"

    @property
    def tokenizer(self) -> TextTokenizer:
        return self._tokenizer

    @property
    def token_names(self) -> TokenNames:
        return TokenNames(
            special={self.pad_id: "<pad>"},
            codes=range(self._text_size, self._text_size + self._codebook_size),
        )

    def lane(self, task: Task) -> int:
        return int(task == Task.GENERATION)

    def __call__(self, sample: RawSample, drop_prompt: bool) -> TokenizedSample:
        builder = SampleBuilder()
        builder.add([self.pad_id], Kind.PROMPT)
        codes = iter(sample.codes)
        for turn in sample.turns:
            is_answer = turn.role == "gpt"
            for piece in split_at_tags(turn.text, codes):
                if isinstance(piece, str):
                    kind = Kind.ANSWER if is_answer else Kind.PROMPT
                    builder.add(self._tokenizer.encode(piece), kind)
                else:
                    kind = Kind.OUTPUT_IMAGE if is_answer else Kind.INPUT_IMAGE
                    builder.add(piece.ravel().astype(np.int64) + self._text_size, kind)
        written = builder.finish(sample, "paper", is_active=True)
        return replace(written, targets=self._targets(written.targets[NEXT_TOKEN]))

    def dry_run(self, sample: RawSample) -> TokenizedSample:
        return self(sample, drop_prompt=False)

    def _targets(self, labels: Target) -> dict[str, Target]:
        is_code = labels.values >= self._text_size
        text, drawn = (
            Target(labels.positions[part], labels.values[part], labels.weights[part])
            for part in (~is_code, is_code)
        )
        vectors = self._vectors[drawn.values - self._text_size].astype(np.float32)
        # Every third entry counts double: weights are not all alike.
        weights = drawn.weights * (1 + (np.arange(len(drawn.positions)) % 3 == 0))
        return {
            NEXT_TOKEN: text,
            VECTOR: Target(drawn.positions, vectors, weights.astype(np.float32)),
            TEACHER: text,
        }
