"""A folder of text files: which are read, how they are split, what is said when none fits."""

import pytest

from jaxlab.core import registry


def _build(path, seq_len=8, batch_size=4, **section):
    section = {"name": "text_folder", "path": str(path), "seq_len": seq_len, **section}
    return registry.build("data", section, seed=0, batch_size=batch_size)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "texts"
    root.mkdir()
    for i in range(40):
        file = root / f"part{i % 3}" / f"{i}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"<{i}> some words of file number {i}")
    (root / "notes.md").write_text("notes")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "a.txt").write_text("hidden")
    return root


def _files(data):
    return [part.tobytes().decode().split("\n") for part in (data._train, data._held_out)]


def test_each_file_is_whole_on_one_side(folder):
    data = _build(folder)
    train, held_out = _files(data)
    assert len(train) == data.info["train_files"]
    assert len(held_out) == data.info["eval_files"]
    expected = {f"<{i}> some words of file number {i}" for i in range(40)}
    assert len(train + held_out) == 40
    assert set(train + held_out) == expected


def test_a_file_stays_on_its_side_when_others_come(folder):
    train, held_out = _files(_build(folder))
    for i in range(20):
        (folder / f"new{i}.txt").write_text("new")
    more_train, more_held_out = _files(_build(folder))
    assert set(train) <= set(more_train)
    assert set(held_out) <= set(more_held_out)


def test_the_split_does_not_depend_on_where_the_folder_lies(folder):
    before = _build(folder).info
    moved = folder.rename(folder.with_name("elsewhere"))
    assert _build(moved).info == before


def test_suffixes_choose_the_files(folder):
    data = _build(folder, suffixes=[".txt", ".md"])
    assert data.info["train_files"] + data.info["eval_files"] == 41


def test_no_such_file_lists_what_is_there(folder):
    with pytest.raises(ValueError, match=r"suffixes=\('.rst',\); it has: .md, .txt"):
        _build(folder, suffixes=(".rst",))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"suffixes": ("txt",)}, "suffixes has 'txt'; nearest: '.txt'"),
        ({"held_out": 1.5}, "held_out=1.5 is not between 0 and 1"),
        ({"held_out": 1e-9}, "leaves 40 to train and 0 to evaluate on; raise held_out"),
        ({"held_out": 1 - 1e-9}, "leaves 0 to train and 40 to evaluate on; lower held_out"),
        ({"seq_len": 10**6}, "training part has .* bytes"),
        ({"path": "no_such_folder"}, "path='no_such_folder' is not a folder"),
    ],
)
def test_bad_arguments_are_named(folder, section, message):
    with pytest.raises(ValueError, match=f"text_folder: .*{message}"):
        _build(**{"path": folder, **section})


def test_caps_are_passed_on(folder):
    info = _build(folder, max_bytes=100, eval_bytes=20).info
    assert (info["train_items"], info["eval_items"], info["eval_targets"]) == (100, 20, 16)
