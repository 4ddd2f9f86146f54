"""The demo's own tokenisers, trained in seconds on its pictures and its words."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_aia.runtime.optional import import_optional
from megatron_aia.shards.patch_quantizer import PatchQuantizer, cut_patches, nearest
from megatron_aia.shards.residual_quantizer import GREY, ResidualPatchQuantizer

if TYPE_CHECKING:
    from PIL.Image import Image


def train_patch_quantizer(
    images: Sequence["Image"],
    codebook_size: int,
    patch_size: int,
    image_area: int,
    is_square: bool = False,
) -> PatchQuantizer:
    """Find the squares by k-means; same pictures, same codebook.

    Args:
        images: pictures at the size at which they will be encoded.
        codebook_size: squares to find.
        patch_size: side of a square in pixels.
        image_area: see ``PatchQuantizer``.
        is_square: see ``PatchQuantizer``.

    Raises:
        ValueError: the pictures have fewer squares than ``codebook_size``.
    """
    pixels = [np.asarray(image.convert("RGB"), np.float32) for image in images]
    patches = np.concatenate([cut_patches(p, patch_size) for p in pixels])
    if len(patches) < codebook_size:
        raise ValueError(f"{len(patches)} patches are too few for {codebook_size} codes")
    centers = _centers(patches, codebook_size)
    shape = (codebook_size, patch_size, patch_size, 3)
    codebook = centers.round().clip(0, 255).astype(np.uint8).reshape(shape)
    return PatchQuantizer(codebook, image_area, is_square)


def _centers(points: np.ndarray, count: int) -> np.ndarray:
    cluster = import_optional("sklearn.cluster", "demo")
    threadpoolctl = import_optional("threadpoolctl", "demo")
    # Several threads would add up in any order, and the codebook would not repeat.
    with threadpoolctl.threadpool_limits(1):
        k_means = cluster.KMeans(count, n_init=1, max_iter=50, random_state=0)
        centers: np.ndarray = k_means.fit(points).cluster_centers_
    return centers


def train_residual_quantizer(
    images: Sequence["Image"], codebook_size: int, patch_size: int, image_area: int, depth: int
) -> ResidualPatchQuantizer:
    """Find squares, and squares of what those leave, in one codebook; same pictures, same codebook.

    Args:
        images: pictures at the size at which they will be encoded.
        codebook_size: squares to find.
        patch_size: side of a square in pixels.
        image_area: see ``ResidualPatchQuantizer``.
        depth: codes of a token.

    Raises:
        ValueError: the pictures have fewer squares than ``codebook_size``.
    """
    first = train_patch_quantizer(images, codebook_size // 2, patch_size, image_area).codebook
    coarse = first.reshape(len(first), -1).astype(np.float32)
    pixels = [np.asarray(image.convert("RGB"), np.float32) for image in images]
    patches = np.concatenate([cut_patches(p, patch_size) for p in pixels])
    rest = patches - coarse[nearest(patches, coarse)]
    fine = _centers(rest, codebook_size - len(first))
    vectors = np.concatenate([coarse - GREY, fine]).round().astype(np.int16)
    return ResidualPatchQuantizer(
        vectors.reshape(codebook_size, patch_size, patch_size, 3), depth, image_area
    )


def train_sentencepiece(
    texts: Iterable[str], path: str | Path, vocab_size: int, special_tokens: Sequence[str] = ()
) -> None:
    """Train byte pairs on ``texts`` and write them to ``path``; same texts, same file.

    Unknown characters fall back to bytes, digits stand alone as in Qwen's tokeniser, and text is
    neither normalised nor given a leading space, so pieces of text can be encoded one by one.

    Args:
        texts: what to train on.
        path: file to write.
        vocab_size: ids of text and special tokens together.
        special_tokens: names of tokens that no text is encoded to, see ``special_id``.

    Raises:
        ValueError: the texts are too few for ``vocab_size`` (257 ids go to bytes and unknown).
    """
    sentencepiece = import_optional("sentencepiece", "demo")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            control_symbols=list(special_tokens),
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"cannot train a tokeniser of {vocab_size} ids: {error}") from error
    Path(path).write_bytes(model.getvalue())
