"""Language modelling on a folder of the user's own text files."""

from pathlib import Path

from jaxlab.core.registry import register
from jaxlab.data.byte_windows import ByteWindows
from jaxlab.data.splits import split_by_hash


@register("data", "text_folder")
def text_folder(
    *,
    path: str,
    seq_len: int,
    suffixes: tuple[str, ...] = (".txt",),
    held_out: float = 0.1,
    max_bytes: int | None = None,
    eval_bytes: int | None = None,
    seed: int,
    batch_size: int,
) -> ByteWindows:
    """The bytes of all text files in a folder and the folders below it.

    Hidden files and folders are left out. Which files are held out follows from a hash of each
    file's path in the folder, so a file stays on its side when others are added.

    Args:
      path: the folder.
      seq_len: predictions per row.
      suffixes: endings of the files to read, e.g. (".txt", ".md").
      held_out: expected fraction of the files that is held out.
      max_bytes: train on the first so many bytes, a sample of the files.
      eval_bytes: evaluate on the first so many held-out bytes.
      seed: of the training windows.
      batch_size: rows of every batch.

    Raises:
      ValueError: no folder, no such file in it, no file in one of the parts, or a size that does
        not fit (see `ByteWindows`).
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"text_folder: path={path!r} is not a folder")
    names = _text_files(root, path, tuple(suffixes))
    train, evaluated = split_by_hash(names, held_out, salt="text_folder")
    if not train or not evaluated:
        raise ValueError(
            f"text_folder: held_out={held_out} of the {len(names)} files in path={path!r} leaves "
            f"{len(train)} to train and {len(evaluated)} to evaluate on; "
            f"{'lower' if evaluated else 'raise'} held_out or add files"
        )
    return ByteWindows(
        "text_folder",
        *(b"\n".join((root / name).read_bytes() for name in part) for part in (train, evaluated)),
        seq_len=seq_len,
        seed=seed,
        batch_size=batch_size,
        max_bytes=max_bytes,
        eval_bytes=eval_bytes,
        info={"train_files": len(train), "eval_files": len(evaluated)},
    )


def _text_files(root: Path, path: str, suffixes: tuple[str, ...]) -> list[str]:
    for suffix in suffixes:
        if not suffix.startswith("."):
            raise ValueError(f"text_folder: suffixes has {suffix!r}; nearest: {'.' + suffix!r}")
    files = [
        file
        for file in root.rglob("*")
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(root).parts)
    ]
    names = [file.relative_to(root).as_posix() for file in files if file.name.endswith(suffixes)]
    if not names:
        present = ", ".join(sorted({file.suffix for file in files if file.suffix})) or "none"
        raise ValueError(
            f"text_folder: path={path!r} has no file with suffixes={suffixes}; it has: {present}"
        )
    return names
