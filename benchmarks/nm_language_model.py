"""N:M recipes on a byte-level decoder, every pattern and seed: the paper's claim, tested.

    python benchmarks/nm_language_model.py --minutes=9      # one GPU; the same again to go on
    python benchmarks/nm_language_model.py --size=small --patterns=1:32x5 \
        --recipes=srste,mdgf_exp --diagnosed=               # 2 CPU cores

benchmarks/sweep.py says how it runs; benchmarks/publish.py and benchmarks/nm_plots.py take the
figures from what it stores.
"""

from absl import app, flags
from experiments import config_of
from sweep import Cell, sweep

_SIZE = flags.DEFINE_enum("size", "large", ["small", "large"], "Which variant of the config.")
_PATTERNS = flags.DEFINE_list(
    "patterns", ["1:32x3", "1:16x3", "2:4x2", "1:8x2"], "In this order, with the number of seeds."
)
_RECIPES = flags.DEFINE_list(
    "recipes",
    [
        "srste", "mdgf_exp", "mdgf_exp@5", "mdgf_exp@20", "ste", "mdgf_linear", "asp",
        "sdgf_stepwise", "sdgf_geometric",
    ],
    "Recipes, with beta_total behind the @; one-shot pruning comes from the dense run.",
)  # fmt: skip
_STEPS = flags.DEFINE_integer("steps", 0, "Steps; 0 for the config's.")
_DIAGNOSED = flags.DEFINE_list("diagnosed", ["1:32"], "Patterns with diagnostics.")


def cell(pattern: str, recipe: str, seeds: int, one_shot: tuple[str, ...] = ()) -> Cell:
    """The cell of a pattern, "n:m", and a recipe."""
    n, m = pattern.split(":")
    name, _, beta_total = recipe.partition("@")
    argument = f"size={_SIZE.value},recipe={name},n={n},m={m},beta_total={beta_total or 0}"
    config = config_of("nm_python_source", argument)
    config.steps = _STEPS.value or config.steps
    # Of float32 products what the device finds fast: the model's own dtype decides the rest.
    config.matmul_precision = "default"
    return Cell(
        f"{pattern} {recipe}",
        config.to_dict(),
        seeds,
        diagnosed=pattern in _DIAGNOSED.value,
        one_shot={f"{p} one_shot": p for p in one_shot},
    )


def main(argv: list[str]) -> None:
    """The dense run, then every pattern with every recipe."""
    del argv
    patterns = [(p, int(count)) for p, count in (text.split("x") for text in _PATTERNS.value)]
    most, every = max(count for _, count in patterns), tuple(p for p, _ in patterns)
    # The pattern of the dense cell is that of its diagnostics.
    cells = [cell(patterns[0][0], "dense", most, every)]
    cells += [cell(p, recipe, count) for p, count in patterns for recipe in _RECIPES.value]
    sweep(f"nm_language_model-{_SIZE.value}", cells)


if __name__ == "__main__":
    app.run(main)
