"""Texts to ids: cut and padded by us, whatever the file says."""

import numpy as np
import pytest

from jaxlab.data.text_tokenizer import TextTokenizer


@pytest.fixture
def file(tmp_path):
    """A tokenizer of words whose file asks for truncation and padding, as the published one."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.enable_truncation(max_length=4)
    made.enable_padding(length=4)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_texts_are_padded_to_the_first_bucket_that_holds_them(file):
    tokenizer = TextTokenizer(file.parent)
    ids, mask = tokenizer(["One", "", "two three two"], buckets=(4, 8, 256))
    assert ids.dtype == mask.dtype == np.int32
    assert ids.tolist() == [
        [2, 4, 3, 0, 0, 0, 0, 0],
        [2, 3, 0, 0, 0, 0, 0, 0],
        [2, 5, 1, 5, 3, 0, 0, 0],
    ]
    np.testing.assert_array_equal(mask.sum(1), [3, 2, 5])
    np.testing.assert_array_equal(mask, np.arange(8) < mask.sum(1, keepdims=True))
    assert tokenizer(["one"], buckets=(4, 8, 256))[0].shape == (1, 4)
    assert tokenizer.vocab_size == 6


def test_long_texts_are_cut_with_both_ends_kept(file):
    ids, mask = TextTokenizer(file)(["one two " * 99], max_length=5, buckets=(5,))
    assert ids.tolist() == [[2, 4, 5, 4, 3]]
    assert mask.all()
    # 256 tokens unless told, not what the file says.
    assert TextTokenizer(file)(["one " * 400])[1].sum() == 256


def test_bad_arguments(file, tmp_path):
    tokenizer = TextTokenizer(file)
    with pytest.raises(TypeError, match="one string"):
        tokenizer("one")
    with pytest.raises(ValueError, match="texts is empty"):
        tokenizer([])
    with pytest.raises(ValueError, match=r"max_length=256 .* buckets=\(16,\); nearest: 16"):
        tokenizer(["one"], buckets=(16,))
    with pytest.raises(ValueError, match="max_length=2 is too short; nearest: 3"):
        tokenizer(["one"], max_length=2)
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing"):
        TextTokenizer(tmp_path / "nothing")
