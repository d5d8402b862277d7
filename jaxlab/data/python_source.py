"""Language modelling on the source of the running Python's standard library: no download."""

import os
import platform
import sysconfig
from pathlib import Path

from jaxlab.core.registry import register
from jaxlab.data.byte_windows import ByteWindows
from jaxlab.data.splits import split_by_hash

# What others installed, and tests: long runs of fixtures that are not ordinary code.
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
# What building or packaging this Python wrote; it differs between builds of one version.
_BUILT = ("_sysconfigdata", "config-", "sitecustomize")
_HELD_OUT = 0.1


@register("data", "python_source")
def python_source(
    *,
    seq_len: int,
    max_bytes: int | None = None,
    eval_bytes: int | None = None,
    seed: int,
    batch_size: int,
) -> ByteWindows:
    """About 10 MB of Python, a tenth of it held out by top-level module.

    The content depends on the Python version; `info` records it with the sha256 of both parts.

    Args:
      seq_len: predictions per row.
      max_bytes: train on the first so many bytes, a sample of files from all modules.
      eval_bytes: evaluate on the first so many held-out bytes.
      seed: of the training windows.
      batch_size: rows of every batch.

    Raises:
      ValueError: this Python came without its source, or a size does not fit (see `ByteWindows`).

    >>> data = python_source(seq_len=64, seed=0, batch_size=4)
    >>> data.batch(0)["tokens"].shape
    (4, 65)
    """
    root = Path(sysconfig.get_path("stdlib"))
    names = source_files(root)
    train, held_out = split_by_hash(names, _HELD_OUT, salt="python_source", group_of=module_of)
    if not train or not held_out:
        raise ValueError(
            f"python_source: {root} has {len(names)} source files; this Python came without its "
            "standard library's source, use data 'text_folder' on a folder of your own"
        )
    return ByteWindows(
        "python_source",
        *(b"\n".join((root / name).read_bytes() for name in part) for part in (train, held_out)),
        seq_len=seq_len,
        seed=seed,
        batch_size=batch_size,
        max_bytes=max_bytes,
        eval_bytes=eval_bytes,
        info={
            "python": platform.python_version(),
            "eval_modules": sorted({module_of(name) for name in held_out}),
        },
    )


def source_files(root: Path) -> list[str]:
    """The library's own `*.py` below `root`, as sorted paths relative to it, with `/`."""
    found = []
    for folder, below, files in os.walk(root):
        below[:] = [d for d in below if d not in _SKIPPED and not d.startswith(_BUILT)]
        found += [
            Path(folder, file).relative_to(root).as_posix()
            for file in files
            if file.endswith(".py") and not file.startswith(_BUILT)
        ]
    return sorted(found)


def module_of(name: str) -> str:
    """The top-level module that a file belongs to.

    >>> module_of("json/decoder.py"), module_of("ast.py")
    ('json', 'ast')
    """
    return name.split("/")[0].removesuffix(".py")
