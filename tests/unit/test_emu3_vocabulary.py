import pytest

from megatron_aia.models.emu3.vocabulary import Emu3Vocabulary


def test_published_ids():
    ids = Emu3Vocabulary(151_643, 32_768)
    assert ids.pad == 151_643
    assert ids.eol == 151_846
    assert ids.eof == 151_847
    assert ids.bos == 151_849
    assert ids.eos == 151_850
    assert (ids.img, ids.boi, ids.eoi) == (151_851, 151_852, 151_853)
    assert ids.first_visual == 151_854
    assert ids.size == 184_622


def test_demo_ids_keep_the_order():
    ids = Emu3Vocabulary(512, 512)
    assert ids.pad == 512
    assert ids.first_visual == 512 + 3 + 205 + 3
    assert ids.size == ids.first_visual + 512


@pytest.mark.parametrize("sizes", [(0, 8), (8, 0)])
def test_empty_parts_are_refused(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        Emu3Vocabulary(*sizes)
