"""Janus-Pro's samples, token by token, against the authors' template written out here."""

from dataclasses import dataclass

import numpy as np
import pytest

from megatron_aia.aia.roles import Task, find_terms, key_code, query_code
from megatron_aia.building.demo.training import train_sentencepiece
from megatron_aia.data.batch import build_micro_batch
from megatron_aia.data.packing import truncate
from megatron_aia.data.tokenizer import load_text_tokenizer
from megatron_aia.models.janus_pro.sample_encoder import JanusSampleEncoder
from megatron_aia.models.janus_pro.special_tokens import NAMES, JanusSpecialTokens
from megatron_aia.models.janus_pro.vocabulary import JanusVocabulary
from megatron_aia.shards.raw_sample import RawSample, Turn

SIZE, PATCH = 32, 16
IDS = JanusVocabulary(140, 20)
CODES = np.array([[0, 1], [2, 19]])


class OneTokenPerCharacter:
    vocab_size = 128
    fingerprint = "ascii"

    def encode(self, text):
        return [ord(character) for character in text]

    def decode(self, ids):
        return "".join(map(chr, ids))

    def special_id(self, name):
        return 128 + list(NAMES.values()).index(name)


SPECIAL = JanusSpecialTokens.find(OneTokenPerCharacter())


@dataclass
class Gray:
    """A picture of one gray that counts how often it is decoded."""

    gray: int
    height: int = 8
    width: int = 8
    decoded: int = 0

    def decode(self):
        self.decoded += 1
        return np.full((self.height, self.width, 3), self.gray, np.uint8)


def raw(task, texts, images=()):
    roles = ["human", "gpt"] * len(texts)
    turns = tuple(Turn(role, text) for role, text in zip(roles, texts, strict=False))
    return RawSample("shard/1", task, turns, tuple(images))


def build(task, texts, images=(), drop=False, sets="paper"):
    prompt = JanusSampleEncoder(IDS, OneTokenPerCharacter(), SPECIAL, sets, SIZE, PATCH)
    return prompt(raw(task, texts, images), drop)


def show(ids):
    """Write ids as readable text; four slots in a row are [slots]."""
    names = {token: f"[{name}]" for name, token in vars(SPECIAL).items()}
    names[IDS.image_slot] = "[slot]"
    text = "".join(names[i] if i in names else chr(i) if i < 128 else f"({i - 140})" for i in ids)
    return text.replace("[slot]" * 4, "[slots]")


def labelled(sample):
    return show(sample.tokens[sample.label_weights > 0])


def rows(sample, task):
    return show(sample.tokens[(sample.roles & 3) == query_code(task)])


def keys(sample, task):
    return show(sample.tokens[(sample.roles & 12) == key_code(task)])


SEEN = "[boi][slots][eoi]"
DRAWN = "[boi](0)(1)(2)(19)"


def test_generation_token_by_token():
    sample = build(Task.GENERATION, [" a cat\n", "<image>"], [CODES])
    assert show(sample.tokens) == f"[bos][user]: a cat\n\n[assistant]:{DRAWN}"
    assert labelled(sample) == "(0)(1)(2)(19)"
    assert sample.images == ()
    assert sample.tokens.dtype == np.int64
    assert sample.label_weights.dtype == np.float32
    assert sample.roles.dtype == np.uint8


def test_generation_roles():
    sample = build(Task.GENERATION, ["a cat", "<image>"], [CODES])
    assert rows(sample, Task.GENERATION) == "(0)(1)(2)(19)"
    assert keys(sample, Task.GENERATION) == "[bos][user]: a cat\n\n[assistant]:[boi]"
    assert [term.task for term in find_terms(sample.roles)] == [Task.GENERATION]


def test_generation_roles_of_the_released_code():
    """Rows lack the last code; keys are the text before boi."""
    sample = build(Task.GENERATION, ["a cat", "<image>"], [CODES], sets="released_code")
    assert rows(sample, Task.GENERATION) == "(0)(1)(2)"
    assert keys(sample, Task.GENERATION) == "[bos][user]: a cat\n\n[assistant]:"
    assert labelled(sample) == "(0)(1)(2)(19)"


@pytest.mark.parametrize("sets", ["paper", "released_code"])
def test_dropped_prompt_is_padding_of_the_same_length(sets):
    whole = build(Task.GENERATION, ["a cat", "<image>"], [CODES], sets=sets)
    sample = build(Task.GENERATION, ["a cat", "<image>"], [CODES], drop=True, sets=sets)
    text = len(whole) - 5
    assert show(sample.tokens) == f"[bos]{'[pad]' * (text - 1)}{DRAWN}"
    assert len(sample) == len(whole)
    assert labelled(sample) == "(0)(1)(2)(19)"
    assert not sample.roles.any()


def test_published_lengths():
    prompt = JanusSampleEncoder(JanusVocabulary(102_400, 16_384), OneTokenPerCharacter(), SPECIAL)
    codes = np.arange(24 * 24).reshape(24, 24) * 28
    sample = prompt(raw(Task.GENERATION, ["a", "<image>"], [codes]), False)
    assert sample.label_weights.sum() == 576
    np.testing.assert_array_equal(sample.tokens[-576:], 102_400 + codes.ravel())
    seen = prompt(raw(Task.UNDERSTANDING, ["<image>a", "b"], [Gray(0)]), False)
    assert (seen.tokens == 102_400 + 16_384).sum() == 576
    assert seen.images[0].load().shape == (3, 384, 384)


def test_understanding_token_by_token():
    sample = build(Task.UNDERSTANDING, ["<image>What is it?", "A cat\n"], [Gray(9)])
    assert show(sample.tokens) == (f"[bos][user]: {SEEN}\nWhat is it?\n\n[assistant]: A cat[eos]")
    assert labelled(sample) == " A cat[eos]"


def test_understanding_roles():
    sample = build(Task.UNDERSTANDING, ["<image>Q", "A cat"], [Gray(9)])
    assert rows(sample, Task.UNDERSTANDING) == " A cat[eos]"
    assert keys(sample, Task.UNDERSTANDING) == "[slots]"
    assert not rows(sample, Task.GENERATION) and not keys(sample, Task.GENERATION)


def test_understanding_roles_of_the_released_code():
    """Keys are boi and all slots but the last."""
    sample = build(Task.UNDERSTANDING, ["<image>Q", "A"], [Gray(9)], sets="released_code")
    assert rows(sample, Task.UNDERSTANDING) == " A[eos]"
    assert keys(sample, Task.UNDERSTANDING) == "[boi][slot][slot][slot]"


def test_later_turns():
    sample = build(Task.UNDERSTANDING, ["<image>Q1", "A1", "Q2", "A2"], [Gray(9)], drop=True)
    assert show(sample.tokens) == (
        f"[bos][user]: {SEEN}\nQ1\n\n[assistant]: A1[eos][user]: Q2\n\n[assistant]: A2[eos]"
    )
    assert labelled(sample) == rows(sample, Task.UNDERSTANDING) == " A1[eos] A2[eos]"


def test_answers_before_the_first_image_are_no_rows():
    sample = build(Task.UNDERSTANDING, ["Q1", "A1", "<image>Q2", "A2"], [Gray(9)])
    assert labelled(sample) == " A1[eos] A2[eos]"
    assert rows(sample, Task.UNDERSTANDING) == " A2[eos]"


@pytest.mark.parametrize(
    ("question", "written"),
    [
        ("<image>", "{0}\n\n"),
        ("Q<image>", "{0}\nQ\n\n"),
        ("<image>\n Q ", "{0}\nQ\n\n"),
        ("<image><image>Q", "{0}\n{0}\nQ\n\n"),
        ("<image> Q <image>", "{0}\n{0}\nQ\n\n"),
        ("<image> is one.\n<image> is two.", "{0} is one.\n{0} is two.\n\n"),
        ("Is <image> like <image>", "Is {0} like {0}\n\n"),
    ],
)
def test_place_of_images_in_a_question(question, written):
    pictures = [Gray(number) for number in range(question.count("<image>"))]
    sample = build(Task.UNDERSTANDING, [question, "A"], pictures)
    assert show(sample.tokens) == f"[bos][user]: {written.format(SEEN)}[assistant]: A[eos]"
    assert [int(image.load()[0, 0, 0]) for image in sample.images] == [p.gray for p in pictures]


def test_images_know_where_their_slots_end():
    sample = build(Task.UNDERSTANDING, ["<image>Q", "A", "<image>R", "B"], [Gray(1), Gray(2)])
    ends = [image.stop for image in sample.images]
    assert [show(sample.tokens[end - 4 : end + 1]) for end in ends] == ["[slots][eoi]"] * 2


def test_text():
    sample = build(Task.TEXT, ["Q", "A"])
    assert show(sample.tokens) == "[bos][user]: Q\n\n[assistant]: A[eos]"
    assert labelled(sample) == " A[eos]"
    assert not sample.roles.any() and sample.images == ()


def test_an_empty_turn_is_written_as_the_template_does():
    sample = build(Task.GENERATION, ["", "<image>"], [CODES])
    assert show(sample.tokens) == f"[bos][user]:[assistant]:{DRAWN}"


def test_editing_is_mixed():
    sample = build(Task.MIXED, ["<image>Turn it", "Done <image>"], [Gray(9), CODES])
    head = f"[bos][user]: {SEEN}\nTurn it\n\n[assistant]:"
    assert show(sample.tokens) == f"{head} Done {DRAWN}[eoi][eos]"
    assert labelled(sample) == " Done (0)(1)(2)(19)"
    assert rows(sample, Task.GENERATION) == "(0)(1)(2)(19)"
    assert keys(sample, Task.GENERATION) == head.replace("[slots]", "") + " Done [boi]"
    assert rows(sample, Task.UNDERSTANDING) == " Done "
    assert keys(sample, Task.UNDERSTANDING) == "[slots]"


def test_drawing_in_a_conversation_then_answering():
    texts = ["Draw", "<image>", "Again", "<image><image>", "What?", "A cat"]
    sample = build(Task.MIXED, texts, [CODES] * 3, sets="released_code")
    assert show(sample.tokens) == (
        f"[bos][user]: Draw\n\n[assistant]:{DRAWN}[eoi][eos]"
        f"[user]: Again\n\n[assistant]:{DRAWN}[eoi]{DRAWN}[eoi][eos]"
        "[user]: What?\n\n[assistant]: A cat[eos]"
    )
    assert labelled(sample) == "(0)(1)(2)(19)" * 3 + " A cat[eos]"
    assert rows(sample, Task.GENERATION) == "(0)(1)(2)" * 3


def test_pictures_are_decoded_when_they_are_loaded():
    picture = Gray(200, height=4, width=8)
    sample = build(Task.UNDERSTANDING, ["<image>Q", "A"], [picture])
    assert picture.decoded == 0
    batch = build_micro_batch([[sample]], 64, SPECIAL.pad, image_size=SIZE)
    assert picture.decoded == 1
    # The long side fills the square, gray lies above and below.
    assert batch.images[0, :, 8:24].unique().tolist() == [200]
    assert batch.images[0, :, :8].unique().tolist() == [127]


def test_a_cut_answer_keeps_the_image():
    sample = build(
        Task.UNDERSTANDING, ["<image>Q", "a long answer"], [Gray(9)], sets="released_code"
    )
    cut = truncate(sample, len(sample) - 10)
    assert show(cut.tokens).endswith("[assistant]: a lo")
    assert cut.images == sample.images
    late = build(Task.UNDERSTANDING, ["Q", "A", "<image>R", "B"], [Gray(9)], sets="released_code")
    with pytest.raises(ValueError, match=f"--seq-length to {late.images[0].stop} or"):
        truncate(late, late.images[0].stop - 1)


@pytest.mark.parametrize(
    ("task", "texts", "images", "message"),
    [
        (Task.GENERATION, ["a", "Here: <image>"], [CODES], "one prompt and one image"),
        (Task.GENERATION, ["a <image>", "b"], [CODES], "one prompt and one image"),
        (Task.GENERATION, ["a", "<image>"], [Gray(0)], "--image-tokenizer"),
        (
            Task.GENERATION,
            ["a", "<image>"],
            [CODES[:1]],
            "1 x 2 codes.*draws 2 x 2.*--image-area 1024",
        ),
        (Task.GENERATION, ["a", "<image>"], [CODES + 1], "codebook_size is 20"),
        (Task.GENERATION, ["a", "<image>"], [CODES[0]], "shape"),
        (Task.UNDERSTANDING, ["<image>Q", "A"], [CODES], "--understanding-images pictures"),
        (Task.UNDERSTANDING, ["<image>Q", "A"], [], "1 image tags, 0 images"),
        (Task.UNDERSTANDING, ["<image>Q", "A", "Q"], [Gray(0)], "turns must be"),
        (Task.TEXT, [], [], "turns must be"),
    ],
)
def test_samples_that_do_not_fit_are_named(task, texts, images, message):
    with pytest.raises(ValueError, match=f"shard/1: .*{message}"):
        build(task, texts, images)


def test_model_and_tokeniser_must_fit():
    tokenizer = OneTokenPerCharacter()
    with pytest.raises(ValueError, match=r"ids up to 134 .*--text-vocab-size"):
        JanusSampleEncoder(JanusVocabulary(134, 20), tokenizer, SPECIAL)
    with pytest.raises(ValueError, match="patches of 16 pixels do not fill a side of 40"):
        JanusSampleEncoder(IDS, tokenizer, SPECIAL, image_size=40)


def test_fingerprint_covers_what_is_written():
    tokenizer = OneTokenPerCharacter()
    other_pad = JanusSpecialTokens(**{**vars(SPECIAL), "pad": 136})
    prompts = [
        JanusSampleEncoder(IDS, tokenizer, SPECIAL),
        JanusSampleEncoder(IDS, tokenizer, SPECIAL),
        JanusSampleEncoder(IDS, tokenizer, SPECIAL, "released_code"),
        JanusSampleEncoder(IDS, tokenizer, other_pad),
        JanusSampleEncoder(IDS, tokenizer, SPECIAL, image_size=96),
        JanusSampleEncoder(IDS, tokenizer, SPECIAL, patch_size=8),
        JanusSampleEncoder(JanusVocabulary(140, 21), tokenizer, SPECIAL),
    ]
    first, same, *others = [prompt.fingerprint for prompt in prompts]
    assert first == same
    assert len({first, *others}) == 6
    # As the first version wrote them: checkpoints and tables of lengths hold them.
    assert [text[:16] for text in (first, others[0])] == ["52ee4ab8e441bd4b", "c70ae725df4c3ea2"]


def authors_text(turns):
    """Write (question, answer) pairs as the template does; an answer that is to come is None."""
    text = ""
    for question, answer in turns:
        text += f"<|User|>: {question.strip()}\n\n"
        text += (
            "<|Assistant|>:" if answer is None else f"<|Assistant|>: {answer.strip()}{NAMES['eos']}"
        )
    return text.strip()


@pytest.fixture
def bpe_file(tmp_path):
    """A tokeniser of the kind Janus-Pro has: byte pairs, special tokens between text ids."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    texts = ["A cat sits on the mat.", "What is in the picture?\n\n", ": the answer"] * 5
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([NAMES["bos"], NAMES["eos"]])
    tokenizer.add_tokens(["ㅋ", NAMES["boi"], NAMES["eoi"]])  # some files do not mark these
    tokenizer.add_special_tokens([NAMES["pad"], NAMES["user"], "<image_placeholder>"])
    tokenizer.add_special_tokens([NAMES["assistant"]])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.fixture
def bpe_prompt(bpe_file):
    tokenizer = load_text_tokenizer(bpe_file)
    special = JanusSpecialTokens.find(tokenizer)
    return JanusSampleEncoder(JanusVocabulary(400, 20), tokenizer, special, "paper", SIZE, PATCH)


def encode_as_authors(bpe_file, text):
    """Encode a whole template in one go, its special tokens included, and put bos before it."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(bpe_file))
    return tokenizer.encode(NAMES["bos"] + text, add_special_tokens=False).ids


def test_generation_is_the_authors_prompt(bpe_file, bpe_prompt):
    sample = bpe_prompt(
        raw(Task.GENERATION, ["A cat on the mat, 3 of 12", "<image>"], [CODES]), False
    )
    expected = encode_as_authors(
        bpe_file, authors_text([("A cat on the mat, 3 of 12", None)]) + NAMES["boi"]
    )
    assert sample.tokens[:-4].tolist() == expected
    np.testing.assert_array_equal(sample.tokens[-4:], CODES.ravel() + 400)


def test_understanding_is_the_authors_conversation(bpe_file, bpe_prompt):
    turns = [("What is in the picture?", "A cat."), ("Where does it sit?", "On the mat ㅋ")]
    texts = [text for turn in turns for text in turn]
    sample = bpe_prompt(
        raw(Task.UNDERSTANDING, ["<image>" + texts[0], *texts[1:]], [Gray(1)]), False
    )
    question = "<image_placeholder>\n" + turns[0][0]
    ids = encode_as_authors(bpe_file, authors_text([(question, turns[0][1]), turns[1]]))
    placeholder = encode_as_authors(bpe_file, "<image_placeholder>")[1]
    at = ids.index(placeholder)
    special = bpe_prompt.special_tokens
    image = [special.boi, *[bpe_prompt.vocabulary.image_slot] * 4, special.eoi]
    assert sample.tokens.tolist() == [*ids[:at], *image, *ids[at + 1 :]]


def test_inference_begins_where_the_answer_is_encoded(bpe_file, bpe_prompt):
    sample = bpe_prompt(raw(Task.TEXT, ["Where is it?", "On the mat"]), False)
    prompt = encode_as_authors(bpe_file, authors_text([("Where is it?", None)]))
    answer = np.flatnonzero(sample.label_weights)
    assert sample.tokens[: answer[0]].tolist() == prompt
    assert bpe_prompt.tokenizer.decode(sample.tokens[answer[:-1]]) == " On the mat"
    assert sample.tokens[answer[-1]] == bpe_prompt.special_tokens.eos


@pytest.mark.parametrize("kind", ["tokenizer.json", "tokenizer.model"])
def test_words_that_spell_special_tokens_stay_words(bpe_file, tmp_path, kind):
    path = tmp_path / kind
    if kind == "tokenizer.model":
        train_sentencepiece(["a few words: \n\n"] * 4, path, 280, list(NAMES.values()))
    tokenizer = load_text_tokenizer(path)
    special = JanusSpecialTokens.find(tokenizer)
    assert len(set(vars(special).values())) == 7
    prompt = JanusSampleEncoder(JanusVocabulary(400, 20), tokenizer, special, "paper", SIZE, PATCH)
    plain = prompt(raw(Task.TEXT, ["a", "b"]), False)
    spelled = "".join(NAMES.values()) + "<image_placeholder>"
    sample = prompt(raw(Task.TEXT, [f"a {spelled}", f"b {spelled}"]), False)
    for token in vars(special).values():
        assert (sample.tokens == token).sum() == (plain.tokens == token).sum()
    assert sample.tokens.max() < 400


def test_a_tokeniser_of_another_model_is_refused(tmp_path):
    train_sentencepiece(["a few words"] * 4, tmp_path / "tokenizer.model", 280)
    with pytest.raises(ValueError, match=r"tokenizer\.model has no special token .*begin"):
        JanusSpecialTokens.find(load_text_tokenizer(tmp_path))
