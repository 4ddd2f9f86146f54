"""Text tokenisers. All of them treat text as text: no string can spell a special token."""

import base64
import binascii
import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from megatron_aia.runtime.optional import import_optional

# Qwen's rule for cutting text into words before byte pairs are merged: digits stand alone.
_QWEN_SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)


class TextTokenizer(Protocol):
    """What the sample encoders need of a tokeniser."""

    @property
    def vocab_size(self) -> int:
        """Every id of ``encode`` is below it."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the tokeniser's file: equal fingerprints encode equally."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, without any special token around or in it."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``; bytes that are no UTF-8 become the replacement character."""

    def special_id(self, name: str) -> int:
        """Return the id of a special token, which no text is ever encoded to.

        Raises:
            ValueError: the tokeniser's file has no such token.
        """


def load_text_tokenizer(path: str | Path) -> TextTokenizer:
    """Load the tokeniser of a file or folder; the file's name says which kind it is.

    ``*.tiktoken`` are ranks of byte pairs, ``*.model`` is SentencePiece and ``*.json`` a Hugging
    Face tokeniser. Of a folder the first of one ``*.tiktoken`` file, ``tokenizer.model``
    and ``tokenizer.json`` that is there is taken.

    Raises:
        ValueError: nothing is there, it cannot be read, or its package is not installed.
    """
    path = Path(path)
    candidates = [path]
    if path.is_dir():
        ranks = sorted(path.glob("*.tiktoken"))
        if len(ranks) > 1:
            raise ValueError(f"{path} has {len(ranks)} *.tiktoken files; name the one to use")
        candidates = [*ranks, path / "tokenizer.model", path / "tokenizer.json"]
    for file in candidates:
        kind = _KINDS.get(file.suffix)
        if kind is not None and file.is_file():
            return kind(file)
    raise ValueError(
        f"no text tokeniser at {path}: expected a *.tiktoken, *.model or *.json file, or a folder "
        "with one of *.tiktoken, tokenizer.model, tokenizer.json"
    )


class _FileTokenizer:
    """What the kinds share: a file, its fingerprint, its special tokens by name."""

    special_ids: Mapping[str, int] = {}

    def __init__(self, file: Path, contents: bytes) -> None:
        self._file = file
        self.fingerprint = hashlib.sha256(contents).hexdigest()

    def special_id(self, name: str) -> int:
        """See ``TextTokenizer``."""
        if name not in self.special_ids:
            raise ValueError(
                f"{self._file} has no special token {name}; point --tokenizer-model to the "
                "tokeniser of the model"
            )
        return self.special_ids[name]


class SentencePieceTokenizer(_FileTokenizer):
    """A SentencePiece ``*.model`` file; its control symbols are its special tokens."""

    def __init__(self, file: Path) -> None:
        sentencepiece = import_optional("sentencepiece", "demo")
        contents = file.read_bytes()
        super().__init__(file, contents)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=contents)
        except RuntimeError as error:
            raise ValueError(f"{file} is not a SentencePiece model: {error}") from error
        self.vocab_size: int = self._processor.get_piece_size()
        self.special_ids = {
            self._processor.id_to_piece(i): i
            for i in range(self.vocab_size)
            if self._processor.is_control(i)
        }

    def encode(self, text: str) -> list[int]:
        """See ``TextTokenizer``."""
        return self._processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """See ``TextTokenizer``."""
        return self._processor.decode([int(i) for i in ids])


class TiktokenTokenizer(_FileTokenizer):
    """Byte pairs by rank, as Qwen published them: its split pattern after NFC normalisation.

    Such a file has no special tokens; a model's own stand behind its ids.
    """

    def __init__(self, file: Path) -> None:
        tiktoken = import_optional("tiktoken", "hf")
        contents = file.read_bytes()
        super().__init__(file, contents)
        ranks = _parse_ranks(contents, file)
        self.vocab_size = len(ranks)
        self._encoding = tiktoken.Encoding(
            file.stem, pat_str=_QWEN_SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )

    def encode(self, text: str) -> list[int]:
        """See ``TextTokenizer``."""
        return self._encoding.encode_ordinary(unicodedata.normalize("NFC", text))

    def decode(self, ids: Sequence[int]) -> str:
        """See ``TextTokenizer``."""
        return self._encoding.decode([int(i) for i in ids], errors="replace")


def _parse_ranks(contents: bytes, file: Path) -> dict[bytes, int]:
    """Read lines of ``<base64 bytes> <rank>``; the ranks must be 0, 1, 2, ... in some order."""
    try:
        pairs = [line.split() for line in contents.splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"{file} is not a tiktoken rank file: {error}") from error
    if sorted(ranks.values()) != list(range(len(pairs))) or not pairs:
        raise ValueError(f"{file} is not a tiktoken rank file: its ranks are not 0 to n - 1")
    return ranks


class HuggingFaceTokenizer(_FileTokenizer):
    """A ``tokenizer.json``.

    Its special tokens are the added tokens that the file marks so, and those in angle brackets:
    some files leave the mark out. Other added tokens are text, letters for example. ``vocab_size``
    counts the ids below the first special token, or up to the last added text behind it. Mind that
    a file may split words otherwise than the ranks it was made from: by GPT-2's pattern and without
    normalising, that of ``*-Chat-hf`` gives some texts other ids than the ``*.tiktoken`` file.
    """

    def __init__(self, file: Path) -> None:
        tokenizers = import_optional("tokenizers", "hf")
        super().__init__(file, file.read_bytes())
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{file} is not a Hugging Face tokeniser: {error}") from error
        added = self._tokenizer.get_added_tokens_decoder()
        special = {i: token.content for i, token in added.items() if _is_special(token)}
        # Marked, a token is no more found in a text: "<|image start|>" stays text.
        self._tokenizer.add_special_tokens(list(special.values()))
        self._tokenizer.encode_special_tokens = True
        self.special_ids = {content: i for i, content in special.items()}
        first = min(special, default=self._tokenizer.get_vocab_size())
        if first == 0:
            raise ValueError(f"{file} numbers special tokens before text; text ids must come first")
        self.vocab_size: int = max([first, *(i + 1 for i in added if i not in special)])

    def encode(self, text: str) -> list[int]:
        """See ``TextTokenizer``."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """See ``TextTokenizer``."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)


def _is_special(added_token: Any) -> bool:
    content: str = added_token.content
    return added_token.special or (content.startswith("<") and content.endswith(">"))


_KINDS: dict[str, type[SentencePieceTokenizer | TiktokenTokenizer | HuggingFaceTokenizer]] = {
    ".tiktoken": TiktokenTokenizer,
    ".model": SentencePieceTokenizer,
    ".json": HuggingFaceTokenizer,
}
