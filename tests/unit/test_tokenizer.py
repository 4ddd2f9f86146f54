import base64
import json

import pytest

from megatron_aia.building.demo.training import train_sentencepiece
from megatron_aia.data.tokenizer import load_text_tokenizer
from megatron_aia.runtime.optional import import_optional

TEXTS = [
    "You are a helpful assistant. USER: What animal is this? ASSISTANT: A cat.",
    "16*16 codes of a photograph",
] * 4
UNUSUAL = " USER: héllo\n  two  spaces, 日本, 😀, <unk>, <|image start|>"


@pytest.fixture
def sentencepiece_file(tmp_path):
    path = tmp_path / "tokenizer.model"
    train_sentencepiece(TEXTS, path, 300)
    return path


def write_ranks(path, merges=()):
    tokens = [bytes([value]) for value in range(256)] + [merge.encode() for merge in merges]
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def ranks_file(tmp_path):
    pytest.importorskip("tiktoken")
    return write_ranks(tmp_path / "emu3.tiktoken", ["ca", "cat", " c", " ca", " cat", "é"])


@pytest.fixture
def hugging_face_file(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|image start|>"])
    tokenizer.add_tokens(["<plain>"])
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("kind", ["sentencepiece_file", "ranks_file", "hugging_face_file"])
def test_any_text_survives_and_spells_no_special_token(kind, request):
    tokenizer = load_text_tokenizer(request.getfixturevalue(kind))
    for text in (*TEXTS, UNUSUAL, ""):
        ids = tokenizer.encode(text)
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert tokenizer.decode(ids) == text


def test_sentencepiece_training_repeats_and_digits_stand_alone(tmp_path, sentencepiece_file):
    train_sentencepiece(TEXTS, tmp_path / "again.model", 300)
    first, again = map(load_text_tokenizer, (sentencepiece_file, tmp_path / "again.model"))
    assert first.vocab_size == 300
    assert first.fingerprint == again.fingerprint
    assert len(first.encode("16*16")) == 5


def test_pieces_encode_like_themselves(sentencepiece_file):
    tokenizer = load_text_tokenizer(sentencepiece_file)
    assert tokenizer.decode(tokenizer.encode(" USER: ") + tokenizer.encode("A cat")) == (
        " USER: A cat"
    )


def test_too_few_texts_for_the_vocabulary(tmp_path):
    with pytest.raises(ValueError, match="20 ids"):
        train_sentencepiece(TEXTS, tmp_path / "tokenizer.model", 20)


def test_tiktoken_splits_digits_normalises_and_ignores_special_tokens(ranks_file):
    tokenizer = load_text_tokenizer(ranks_file)
    assert tokenizer.vocab_size == 262
    assert tokenizer.encode("cat") == [257]
    assert tokenizer.encode(" cat") == [260]
    assert len(tokenizer.encode("90*90")) == 5
    decomposed = "e\u0301"
    assert tokenizer.encode(decomposed) == tokenizer.encode("é") == [261]
    assert tokenizer.decode(tokenizer.encode("<|endoftext|>")) == "<|endoftext|>"
    assert tokenizer.decode([0xC3]) == "�"


@pytest.mark.parametrize("contents", ["", "not base64!! 0", "YQ== x", "YQ== 5", "YQ== 0\nYg== 0"])
def test_broken_rank_files_are_refused(tmp_path, contents):
    pytest.importorskip("tiktoken")
    path = tmp_path / "emu3.tiktoken"
    path.write_text(contents)
    with pytest.raises(ValueError, match="not a tiktoken rank file"):
        load_text_tokenizer(path)


def test_hugging_face_text_ids_end_at_the_first_special_token(hugging_face_file):
    tokenizer = load_text_tokenizer(hugging_face_file)
    assert tokenizer.vocab_size == 256
    # Not marked as special in the file, and in a text still no special token.
    assert tokenizer.decode(tokenizer.encode("a <plain> word")) == "a <plain> word"
    assert max(tokenizer.encode("a <plain> word")) < 256
    assert tokenizer.special_id("<|image start|>") == 257
    assert tokenizer.special_id("<plain>") == 258


def test_hugging_face_letters_among_the_added_tokens_are_text(hugging_face_file):
    """Letters whose symbols no byte of UTF-8 needs may stand behind special tokens."""
    contents = json.loads(hugging_face_file.read_text())
    letters = "øöúÿõ÷ûýÀùÁþü"
    kept = [symbol for symbol in contents["model"]["vocab"] if symbol not in letters]
    contents["model"]["vocab"] = {symbol: i for i, symbol in enumerate(kept)}
    special = contents["added_tokens"][0]
    contents["added_tokens"] = [{**special, "id": 243, "content": "<bos>"}] + [
        {**special, "id": 244 + i, "content": letter, "special": False}
        for i, letter in enumerate(letters)
    ]
    hugging_face_file.write_text(json.dumps(contents))
    tokenizer = load_text_tokenizer(hugging_face_file)
    assert tokenizer.special_ids == {"<bos>": 243}
    assert tokenizer.encode("ü") == [256]
    assert tokenizer.vocab_size == 257
    assert 243 not in tokenizer.encode("<bos> süß")


SPECIAL_TOKENS = ("<｜begin▁of▁sentence｜>", "<begin_of_image>", "<|User|>")  # noqa: RUF001


def test_special_tokens_of_sentencepiece(tmp_path):
    train_sentencepiece(TEXTS, tmp_path / "tokenizer.model", 300, SPECIAL_TOKENS)
    tokenizer = load_text_tokenizer(tmp_path)
    ids = {tokenizer.special_id(name) for name in SPECIAL_TOKENS}
    assert len(ids) == 3 and max(ids) < tokenizer.vocab_size == 300
    for name in SPECIAL_TOKENS:
        assert not ids.intersection(tokenizer.encode(f"a {name} in a text"))
    text = "a <|User|> in a text"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", ["sentencepiece_file", "ranks_file", "hugging_face_file"])
def test_a_special_token_that_is_not_there(kind, request):
    file = request.getfixturevalue(kind)
    with pytest.raises(ValueError, match=rf"{file} has no special token <\|User\|>.*--tokenizer"):
        load_text_tokenizer(file).special_id("<|User|>")


def test_hugging_face_special_tokens_before_text_are_refused(hugging_face_file):
    contents = json.loads(hugging_face_file.read_text())
    contents["model"]["vocab"]["<first>"] = contents["model"]["vocab"].pop("!")
    token = {"id": contents["model"]["vocab"]["<first>"], "content": "<first>", "special": True}
    contents["added_tokens"] = [{**contents["added_tokens"][0], **token}]
    hugging_face_file.write_text(json.dumps(contents))
    with pytest.raises(ValueError, match="text ids must come first"):
        load_text_tokenizer(hugging_face_file)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_garbage_files_are_refused(tmp_path, name):
    pytest.importorskip("tokenizers")
    (tmp_path / name).write_text("garbage")
    with pytest.raises(ValueError, match=name):
        load_text_tokenizer(tmp_path)


def test_folder_prefers_the_published_ranks(tmp_path, sentencepiece_file, ranks_file):
    from_folder = load_text_tokenizer(tmp_path)
    assert from_folder.fingerprint == load_text_tokenizer(ranks_file).fingerprint
    ranks_file.unlink()
    assert load_text_tokenizer(tmp_path).vocab_size == 300


@pytest.mark.parametrize("name", ["", "missing.model", "readme.txt"])
def test_nothing_there(tmp_path, name):
    (tmp_path / "readme.txt").write_text("no tokeniser")
    with pytest.raises(ValueError, match="no text tokeniser at"):
        load_text_tokenizer(tmp_path / name)


def test_missing_package_names_the_pip_command():
    with pytest.raises(ValueError, match=r"pip install 'megatron_aia\[hf\]'"):
        import_optional("a_package_nobody_has", "hf")
