"""The generated part of docs/nm_language_model.md: bits per byte, FLOPs and diagnostics."""

import statistics
import textwrap
from collections.abc import Sequence
from typing import Any

from claim import machine, spread, stored
from nm_cost import CONFIG, layer_flops, lengths, schedule
from publish_nm import (
    LARGE,
    PATTERNS,
    RECIPES,
    best_decay,
    gain,
    mean,
    over_run,
    values,
)

from jaxlab.methods.nm.flops import nm_iso_flop_table

DENSE = ("1:32 dense", "1:16 dense")
# One of those that cost the same.
COSTED = ("one_shot", "asp", "ste", "srste", "mdgf_exp", "mdgf_linear", "sdgf_stepwise")
COSTED += ("sdgf_geometric",)


def language_model_page() -> str:
    """What stands between the markers of docs/nm_language_model.md."""
    records = stored(LARGE)
    if not records:
        return "Not run."
    return "\n\n".join(_section(record) for record in records)


def _section(record: dict[str, Any]) -> str:
    result = record["result"]
    parts = [
        _how(record),
        "## Bits per byte",
        _dense(result),
        _qualities(result),
        "The best exponential decay of each pattern against the others: bits per byte that it "
        "saves, with the pooled standard deviation of the seeds.",
        _gains(result),
        "## Training FLOPs",
        "Relative to the dense run of the same number of steps, and in brackets the steps that the "
        "FLOPs of the dense run would pay for. No run was made at those lengths: the bits per byte "
        "above compare equal steps and not equal FLOPs.",
        _costs(result),
        "## Noise and flips at 1:32",
        "Means over the run: of the variance of the gradient over 8 minibatches and of Adam's "
        "second moment, pruned / kept; and of the fraction of mask entries that one step changes. "
        "Of the dense run, kept and pruned are what the mask would be.",
        _diagnostics(result),
    ]
    # Tables are lines of their own, and stay.
    return "\n\n".join(p if p.startswith("|") else _wrapped(p) for p in parts)


def _how(record: dict[str, Any]) -> str:
    result, model = record["result"], CONFIG["model"]
    steps = result["cells"][DENSE[0]]["steps"]
    tokens = steps * CONFIG["batch_size"] * CONFIG["data"]["seq_len"]
    data = result["data"]
    passes = tokens / data["train_items"]
    return (
        f"{steps} steps of {CONFIG['batch_size']} x {CONFIG['data']['seq_len']} bytes, "
        f"{tokens / 1e6:.1f} million or {passes:.1f} passes over the "
        f"{data['train_items'] / 1e6:.1f} million bytes of Python {data['python']}'s standard "
        f"library; {data['eval_targets']} bytes of {len(data['eval_modules'])} other modules held "
        f"out. {model['depth']} layers, width {model['d_model']}, feed-forward width "
        f"{model['d_mlp']}, {model['dtype']} activations, AdamW at {CONFIG['optim']['lr']:g} with "
        f"cosine decay. Machine: {machine(record)}."
    )


def _dense(result: Any) -> str:
    runs = [values(result, key) for key in DENSE if key in result["cells"]]
    text = f"Dense: {spread(runs[0])} ({len(runs[0])} seeds)."
    if len(runs) < 2:
        return text
    apart = max(abs(a - b) for a, b in zip(*runs, strict=False))
    return (
        f"{text} The same run again, on the other card: {spread(runs[1])}; single seeds differ by "
        f"up to {apart:.4f}, so that much comes from the machine (sums in another order)."
    )


def _qualities(result: Any) -> str:
    rows = []
    for recipe, label in RECIPES.items():
        cells = []
        for pattern in PATTERNS:
            key = f"{pattern} {recipe}"
            found = values(result, key) if key in result["cells"] else []
            cells.append(f"{spread(found)} ({len(found)})" if found else "not run")
        rows.append([label, *cells])
    return _table(["recipe (seeds in brackets)", *PATTERNS], rows)


def _gains(result: Any) -> str:
    rows = []
    for pattern in PATTERNS:
        saved = []
        for other in ("srste", "ste"):
            difference, deviation = gain(result, pattern, other)
            saved.append(f"{difference:+.4f} ({deviation:.4f})")
        best = best_decay(result, pattern)
        # Of the seeds that both have.
        dense = values(result, DENSE[0])[: len(values(result, best))]
        saved.append(f"{statistics.mean(dense) - mean(result, best):+.4f}")
        rows.append([pattern, RECIPES[best.split()[1]], *saved])
    return _table(["pattern", "best decay", "over SR-STE", "over STE", "over dense"], rows)


def _costs(result: Any) -> str:
    flops, axes = layer_flops(), lengths()
    steps = result["cells"][DENSE[0]]["steps"]
    columns = []
    for pattern in PATTERNS:
        runs = {name: schedule(name, pattern, steps) for name in ("dense", *COSTED)}
        columns.append(nm_iso_flop_table(runs, flops, lengths=axes)[1:])
    rows = []
    for i, name in enumerate(COSTED):
        found = [column[i] for column in columns]
        label = RECIPES[name].removesuffix(", 10")
        rows.append([label, *(f"{row['share']:.3f} ({row['iso_steps']})" for row in found)])
    inference = [f"{column[0]['inference_ratio']:.3f}" for column in columns]
    rows.append(["one forward pass afterwards, all", *inference])
    return _table(["recipe", *PATTERNS], rows)


def _diagnostics(result: Any) -> str:
    rows = []
    for recipe, label in {"dense": "dense", **RECIPES}.items():
        key = f"1:32 {recipe}"
        if not result["cells"].get(key, {}).get("probes"):
            continue
        pruned, kept = (over_run(result, key, f"nu_{side}") for side in ("pruned", "kept"))
        ratio = spread(p / k for p, k in zip(pruned, kept, strict=True))
        flips = statistics.mean(over_run(result, key, "flip_rate"))
        noise = spread(over_run(result, key, "noise_ratio"))
        rows.append([label, noise, ratio, f"{1e4 * flips:.2f}"])
    return _table(["recipe", "noise ratio", "second moments", "flips of 10 000"], rows)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_on_hyphens=False)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
