"""N:M recipes on a small MLP of digits: the margins that learned masks must keep.

    python benchmarks/nm_digits.py

benchmarks/sweep.py says how it runs; benchmarks/publish.py judges what it stores.
"""

from absl import app, flags
from experiments import config_of
from sweep import Cell, sweep

_SEEDS = flags.DEFINE_integer("seeds", 4, "Seeds of every cell.")
_PATTERNS = flags.DEFINE_list("patterns", ["1:16", "2:4", "1:32"], "Patterns.")
_RECIPES = flags.DEFINE_list(
    "recipes", ["ste", "srste", "mdgf_exp", "mdgf_linear", "sdgf_stepwise", "asp"], "Recipes."
)


def cell(pattern: str, recipe: str, one_shot: tuple[str, ...] = ()) -> Cell:
    """The cell of a pattern, "n:m", and a recipe."""
    n, m = pattern.split(":")
    config = config_of("nm_digits", f"recipe={recipe},n={n},m={m}")
    pruned = {f"{p} one_shot": p for p in one_shot}
    return Cell(f"{pattern} {recipe}", config.to_dict(), _SEEDS.value, one_shot=pruned)


def main(argv: list[str]) -> None:
    """The dense run, then every pattern with every recipe."""
    del argv
    cells = [cell(_PATTERNS.value[0], "dense", tuple(_PATTERNS.value))]
    sweep("nm_digits", cells + [cell(p, r) for p in _PATTERNS.value for r in _RECIPES.value])


if __name__ == "__main__":
    app.run(main)
