"""Windows of bytes: training ones pure in (seed, step), evaluation ones consecutive."""

import json

import numpy as np
import pytest

from jaxlab.data.byte_windows import ByteWindows

TRAIN = bytes(range(200))
HELD_OUT = bytes(range(40, 140))


def _windows(*, train=TRAIN, held_out=HELD_OUT, seq_len=8, seed=0, batch_size=5, **kwargs):
    return ByteWindows(
        "tiny", train, held_out, seq_len=seq_len, seed=seed, batch_size=batch_size, **kwargs
    )


def test_training_rows_are_windows_of_the_training_bytes():
    tokens = np.concatenate([_windows().batch(step)["tokens"] for step in range(200)])
    assert tokens.dtype == np.int32
    assert tokens.shape == (1000, 9)
    # The bytes count up, so a window is known by its first byte.
    np.testing.assert_array_equal(tokens - tokens[:, :1], np.tile(np.arange(9), (1000, 1)))
    assert tokens.min() == 0
    assert tokens.max() == 199


def test_fresh_objects_and_any_order_give_the_same_bytes():
    first, second = _windows(), _windows()
    forward = [first.batch(step)["tokens"] for step in range(10)]
    for step in (9, 0, 4, 4, 2):
        assert second.batch(step)["tokens"].tobytes() == forward[step].tobytes()


def test_seeds_and_steps_differ():
    tokens = _windows().batch(0)["tokens"]
    assert not np.array_equal(tokens, _windows(seed=1).batch(0)["tokens"])
    assert not np.array_equal(tokens, _windows().batch(1)["tokens"])


@pytest.mark.parametrize("seq_len", [1, 8, 9, 11, 99])
def test_each_held_out_byte_is_a_target_once(seq_len):
    data = _windows(seq_len=seq_len)
    batches = list(data.eval_batches())
    assert all(b["tokens"].shape == (5, seq_len + 1) for b in batches)
    rows = np.concatenate([b["tokens"][b["weight"] == 1] for b in batches])
    targets = rows[:, 1:].ravel()
    # Fewer than seq_len bytes at the end fill no window.
    whole = 99 // seq_len * seq_len
    np.testing.assert_array_equal(targets, np.frombuffer(HELD_OUT, np.uint8)[1 : whole + 1])
    assert sum(b["weight"].sum() for b in batches) * seq_len == data.info["eval_targets"] == whole


def test_caps_take_the_start_of_each_part():
    data = _windows(max_bytes=20, eval_bytes=17)
    tokens = np.concatenate([data.batch(step)["tokens"] for step in range(50)])
    assert tokens.max() == 19
    assert (data.info["train_items"], data.info["eval_items"]) == (20, 17)
    assert data.info["eval_targets"] == 16
    assert data.info["train_sha256"] == _windows(train=TRAIN[:20]).info["train_sha256"]
    assert data.info["train_sha256"] != _windows().info["train_sha256"]


def test_info_is_json():
    info = _windows(info={"source": "test"}).info
    assert json.loads(json.dumps(info)) == info
    assert info["source"] == "test"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq_len": 0}, "seq_len=0 must be positive; nearest: 1"),
        ({"max_bytes": -1}, "max_bytes=-1 must be positive; nearest: 1"),
        ({"eval_bytes": 0}, "eval_bytes=0 must be positive; nearest: 1"),
        ({"seed": -2}, "seed=-2 is negative; nearest: 0"),
        ({"batch_size": 0}, "batch_size=0 must be 1 or more; nearest: 1"),
        ({"seq_len": 196}, "training part has 200 bytes.* take 201; nearest: seq_len=195"),
        ({"seq_len": 100}, "held-out part has 100 bytes.* takes 101; nearest: seq_len=99"),
        ({"max_bytes": 3}, "training part has 3 bytes.* give it more text"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=f"tiny: (the )?{message}"):
        _windows(**change)


def test_the_nearest_choices_in_the_messages_are_legal():
    assert _windows(seq_len=195, held_out=TRAIN).batch(0)["tokens"].shape == (5, 196)
    assert len(list(_windows(seq_len=99).eval_batches())) == 1


def test_a_negative_step_is_refused():
    with pytest.raises(ValueError, match="step=-1 is negative"):
        _windows().batch(-1)
