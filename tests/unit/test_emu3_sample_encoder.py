import numpy as np
import pytest

from megatron_aia.aia.roles import Task, find_terms, key_code, query_code
from megatron_aia.models.emu3.sample_encoder import Emu3SampleEncoder
from megatron_aia.models.emu3.vocabulary import Emu3Vocabulary
from megatron_aia.shards.raw_sample import RawSample, Turn

IDS = Emu3Vocabulary(128, 32)
CODES = np.array([[0, 1, 2], [3, 4, 31]])


class OneTokenPerCharacter:
    vocab_size = 128
    fingerprint = "ascii"

    def encode(self, text):
        return [ord(character) for character in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


def build(task, texts, codes=(), drop=False, sets="paper"):
    roles = ["human", "gpt"] * len(texts)
    turns = tuple(Turn(role, text) for role, text in zip(roles, texts, strict=False))
    sample = RawSample("shard/1", task, turns, tuple(codes))
    return Emu3SampleEncoder(IDS, OneTokenPerCharacter(), sets)(sample, drop)


def show(ids):
    """Write ids as readable text."""
    special = ["pad", "bos", "eos", "boi", "eoi", "img", "eol", "eof"]
    names = {getattr(IDS, name): f"[{name}]" for name in special}
    return "".join(
        names[i] if i in names else chr(i) if i < 128 else f"({i - IDS.first_visual})" for i in ids
    )


def labelled(sample):
    return show(sample.tokens[sample.label_weights > 0])


def rows(sample, task):
    return sample.tokens[(sample.roles & 3) == query_code(task)]


def keys(sample, task):
    return sample.tokens[(sample.roles & 12) == key_code(task)]


IMAGE = "[boi]2*3[img](0)(1)(2)[eol](3)(4)(31)[eol][eof][eoi]"
ASK = "You are a helpful assistant. USER: "


def test_generation_token_by_token():
    sample = build(Task.GENERATION, ["a cat", "<image>"], [CODES])
    assert show(sample.tokens) == "[bos]a cat" + IMAGE
    assert labelled(sample) == "(0)(1)(2)(3)(4)(31)"
    assert sample.task == Task.GENERATION
    assert sample.tokens.dtype == np.int64
    assert sample.label_weights.dtype == np.float32
    assert sample.roles.dtype == np.uint8


def test_generation_roles():
    sample = build(Task.GENERATION, ["a cat", "<image>"], [CODES])
    assert show(rows(sample, Task.GENERATION)) == "(0)(1)(2)(3)(4)(31)"
    assert show(keys(sample, Task.GENERATION)) == "[bos]a cat[boi]2*3[img]"
    assert [term.task for term in find_terms(sample.roles)] == [Task.GENERATION]


def test_generation_roles_of_the_released_code():
    sample = build(Task.GENERATION, ["a cat", "<image>"], [CODES], sets="released_code")
    assert show(rows(sample, Task.GENERATION)) == "(0)(1)(2)(3)(4)"
    assert show(keys(sample, Task.GENERATION)) == "[bos]a cat[boi]2*3"
    assert labelled(sample) == "(0)(1)(2)(3)(4)(31)"


@pytest.mark.parametrize("sets", ["paper", "released_code"])
def test_dropped_prompt(sets):
    sample = build(Task.GENERATION, ["a cat", "<image>"], [CODES], drop=True, sets=sets)
    assert show(sample.tokens) == "[bos]" + IMAGE
    assert labelled(sample) == "(0)(1)(2)(3)(4)(31)"
    assert not sample.roles.any()


def test_segment_length_of_a_published_image():
    codes = np.arange(90 * 90).reshape(90, 90) % 32
    sample = build(Task.GENERATION, ["", "<image>"], [codes])
    assert len(sample) == 1 + 8199
    assert sample.label_weights.sum() == 8100


def test_understanding_token_by_token():
    sample = build(Task.UNDERSTANDING, ["<image>What is it?", "A cat"], [CODES])
    assert show(sample.tokens) == f"[bos]{ASK}{IMAGE}What is it?. ASSISTANT:A cat[eos]"
    assert labelled(sample) == "A cat[eos]"


def test_understanding_roles():
    sample = build(Task.UNDERSTANDING, ["<image>Q", "A cat"], [CODES])
    assert show(rows(sample, Task.UNDERSTANDING)) == "A cat[eos]"
    assert show(keys(sample, Task.UNDERSTANDING)) == "(0)(1)(2)[eol](3)(4)(31)[eol]"
    assert not len(rows(sample, Task.GENERATION))
    assert not len(keys(sample, Task.GENERATION))


def test_understanding_roles_of_the_released_code():
    sample = build(Task.UNDERSTANDING, ["<image>Q", "A cat"], [CODES], sets="released_code")
    assert show(rows(sample, Task.UNDERSTANDING)) == "A cat[eos]"
    assert show(keys(sample, Task.UNDERSTANDING)) == "[img](0)(1)(2)[eol](3)(4)(31)"


def test_later_turns():
    sample = build(Task.UNDERSTANDING, ["<image>Q1", "A1", "Q2", "A2"], [CODES], drop=True)
    assert show(sample.tokens) == (
        f"[bos]{ASK}{IMAGE}Q1. ASSISTANT:A1[eos] USER: Q2. ASSISTANT:A2[eos]"
    )
    assert labelled(sample) == show(rows(sample, Task.UNDERSTANDING)) == "A1[eos]A2[eos]"


def test_answers_before_the_first_image_are_no_rows():
    sample = build(Task.UNDERSTANDING, ["Q1", "A1", "<image>Q2", "A2"], [CODES])
    assert labelled(sample) == "A1[eos]A2[eos]"
    assert show(rows(sample, Task.UNDERSTANDING)) == "A2[eos]"


@pytest.mark.parametrize(
    ("question", "written"),
    [
        ("Q<image>", "{0}Q"),
        ("<image><image>Q", "{0}{1}Q"),
        ("Q<image><image>", "{0}{1}Q"),
        ("Is <image> like <image>", "Is {0} like {1}"),
    ],
)
def test_place_of_images_in_a_question(question, written):
    codes = [np.array([[0]]), np.array([[1]])][: question.count("<image>")]
    images = [f"[boi]1*1[img]({number})[eol][eof][eoi]" for number in range(2)]
    sample = build(Task.UNDERSTANDING, [question, "A"], codes)
    assert show(sample.tokens) == f"[bos]{ASK}{written.format(*images)}. ASSISTANT:A[eos]"


def test_text():
    sample = build(Task.TEXT, ["Q", "A"])
    assert show(sample.tokens) == f"[bos]{ASK}Q. ASSISTANT:A[eos]"
    assert labelled(sample) == "A[eos]"
    assert not sample.roles.any()


def test_editing_is_mixed():
    one, two = np.array([[1, 2]]), np.array([[5, 6]])
    sample = build(Task.MIXED, ["<image>Turn it", "Done <image>"], [one, two])
    seen, drawn = (f"[boi]1*2[img]({a})({b})[eol][eof][eoi]" for a, b in ((1, 2), (5, 6)))
    head = f"[bos]{ASK}"
    assert show(sample.tokens) == f"{head}{seen}Turn it. ASSISTANT:Done {drawn}[eos]"
    assert labelled(sample) == "Done (5)(6)"
    assert show(rows(sample, Task.GENERATION)) == "(5)(6)"
    assert show(keys(sample, Task.GENERATION)) == (
        f"{head}[boi]1*2[img][eof][eoi]Turn it. ASSISTANT:Done [boi]1*2[img]"
    )
    assert show(rows(sample, Task.UNDERSTANDING)) == "Done "
    assert show(keys(sample, Task.UNDERSTANDING)) == "(1)(2)[eol]"


def test_drawing_in_a_conversation_then_answering():
    sample = build(Task.MIXED, ["Draw", "<image>", "What?", "A cat"], [CODES])
    assert show(sample.tokens).endswith(f"{IMAGE}[eos] USER: What?. ASSISTANT:A cat[eos]")
    assert labelled(sample) == "(0)(1)(2)(3)(4)(31)A cat[eos]"
    assert show(keys(sample, Task.GENERATION)) == f"[bos]{ASK}Draw. ASSISTANT:[boi]2*3[img]"
    assert [term.task for term in find_terms(sample.roles)] == [Task.GENERATION]


@pytest.mark.parametrize(
    ("task", "texts", "codes", "message"),
    [
        (Task.GENERATION, ["a", "Here: <image>"], [CODES], "one prompt and one image"),
        (Task.GENERATION, ["a <image>", "b"], [CODES], "one prompt and one image"),
        (Task.UNDERSTANDING, ["<image>Q", "A"], [], "1 image tags, 0 images"),
        (Task.UNDERSTANDING, ["<image>Q", "A", "Q"], [CODES], "turns must be"),
        (Task.UNDERSTANDING, ["<image>Q", "A"], [CODES + 1], "codebook_size is 32"),
        (Task.UNDERSTANDING, ["<image>Q", "A"], [CODES[0]], "shape"),
        (Task.TEXT, [], [], "turns must be"),
    ],
)
def test_samples_that_do_not_fit_are_named(task, texts, codes, message):
    with pytest.raises(ValueError, match=f"shard/1: .*{message}"):
        build(task, texts, codes)


def test_tokenizer_must_fit_the_vocabulary():
    with pytest.raises(ValueError, match="--text-vocab-size"):
        Emu3SampleEncoder(Emu3Vocabulary(127, 32), OneTokenPerCharacter())


def test_fingerprint_covers_vocabulary_and_sets():
    tokenizer = OneTokenPerCharacter()
    prompts = [
        Emu3SampleEncoder(IDS, tokenizer),
        Emu3SampleEncoder(IDS, tokenizer),
        Emu3SampleEncoder(IDS, tokenizer, "released_code"),
        Emu3SampleEncoder(Emu3Vocabulary(128, 33), tokenizer),
    ]
    first, same, *others = [prompt.fingerprint for prompt in prompts]
    assert first == same
    assert len({first, *others}) == 3
    # As the first version wrote them: checkpoints and tables of lengths hold them.
    assert [text[:16] for text in (first, others[0])] == ["a5e9179508782902", "f7669bb7d5ef0cad"]


def test_image_block_equals_that_of_transformers():
    emu3 = pytest.importorskip("transformers.models.emu3.modeling_emu3")
    torch = pytest.importorskip("torch")
    names = {f"<|visual token {c:06d}|>": IDS.first_visual + c for c in range(32)}
    mapping = emu3.Emu3ImageVocabularyMapping({**names, "<|extra_200|>": IDS.eol})
    sample = build(Task.UNDERSTANDING, ["<image>Q", "A"], [CODES])
    expected = mapping.convert_img2bpe(torch.from_numpy(CODES)).flatten().numpy()
    np.testing.assert_array_equal(keys(sample, Task.UNDERSTANDING), expected)
