"""Writes the figures of README, docs and the configs' docstrings from stored results.

    python benchmarks/publish.py           # rewrite
    python benchmarks/publish.py --check   # exit status 1 if a page is out of date

No figure on those pages is typed by hand: change the results by running their benchmark.
"""

import argparse
import re
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from claim import CPU, ROOT, Claim, machine, spread, stored, table, verdict
from compression_pages import low_rank_page, reverse_page
from minilm_page import rewritten as minilm_rewritten
from nm_page import language_model_page
from publish_compression import COMPRESSION_CLAIMS, reverse_facts
from publish_decoding import decoding_page
from publish_gphm import GPHM_CLAIMS, GPHM_FACTS, gphm_page
from publish_kernels import KERNEL_CLAIMS, kernels_page, kernels_summary
from publish_kron import KRON_CLAIMS, kron_page
from publish_low_rank import LOW_RANK_CLAIMS, low_rank_language_model_page
from publish_mfac import MFAC_PRUNING_CLAIMS, mfac_page
from publish_mfac_step import MFAC_STEP_CLAIMS
from publish_minilm import MINILM_CLAIMS
from publish_monarch import MONARCH_CLAIMS, monarch_small_page
from publish_nm import NM_CLAIMS
from publish_numerics import NUMERICS_CLAIMS
from publish_second_order import SECOND_ORDER_CLAIMS
from publish_special import SPECIAL_CLAIMS, bessel_page
from publish_vmf import VMF_CLAIMS, docstrings_facts, vmf_facts
from second_order_page import second_order_page
from vmf_page import vmf_page


def qualities(result: Any, variant: str, form: str = "finalized") -> list[float]:
    """The quality of every seed of a variant."""
    return [r["quality"][form] for r in result["runs"] if r["variant"] == variant]


def smaller(result: Any) -> float:
    """How many times smaller the file is than the dense parameters."""
    return statistics.mean(
        r["bytes"]["dense"] / r["bytes"]["file"]
        for r in result["runs"]
        if r["variant"] == "default"
    )


def against_dense(result: Any) -> str:
    """Quality with and without compression, and the size."""
    name = result["runs"][0]["quality"]["name"].replace("_", " ")
    count = len(qualities(result, "default"))
    seeds = f"{count} seeds" if count > 1 else "1 seed"
    return (
        f"{name} {spread(qualities(result, 'default'))} finalized, "
        f"{spread(qualities(result, 'dense'))} dense ({seeds}); "
        f"{smaller(result):.2f}x smaller on disk"
    )


def loses_at_most(margin: float) -> Callable[[Any], str]:
    """Whether the compressed model loses at most `margin`, beyond one standard error or not."""

    def judge(result: Any) -> str:
        sign = 1 if result["runs"][0]["quality"]["mode"] == "max" else -1
        compressed, dense = qualities(result, "default"), qualities(result, "dense")
        loss = sign * (statistics.mean(dense) - statistics.mean(compressed))
        if len(dense) < 2:
            return "open: one seed"
        error = sum(statistics.variance(v) / len(v) for v in (compressed, dense)) ** 0.5
        if abs(loss - margin) <= error:
            return f"undecided: loses {loss:.4f} ± {error:.4f} (standard error)"
        return verdict(loss < margin)

    return judge


def until_dense(result: Any) -> str:
    """Monarch from dense kernels that were trained for a part of the run, and from random ones."""
    late, early = (qualities(result, variant) for variant in ("dense_until=0.7", "default"))
    return (
        f"accuracy {spread(late)} projected after 0.7 of the steps, {spread(early)} from the start "
        f"({len(late)} seeds)"
    )


def at_least_early(result: Any) -> str:
    """Whether late projection is at least as good, beyond one standard error or not."""
    late, early = (qualities(result, variant) for variant in ("dense_until=0.7", "default"))
    gain = statistics.mean(late) - statistics.mean(early)
    error = sum(statistics.variance(v) / len(v) for v in (late, early)) ** 0.5
    return "undecided" if abs(gain) <= error else verdict(gain > 0)


def finalize_loss(result: Any) -> float:
    """The largest change of quality that `finalize` makes, over all runs."""
    return max(abs(r["quality"]["trained"] - r["quality"]["finalized"]) for r in result["runs"])


def claims_command(config: str, seeds: int) -> str:
    """The command behind a config's claims."""
    return f"python benchmarks/claims.py --config=configs/{config}.py --seeds={seeds}"


MONARCH_DIGITS = f"{claims_command('monarch_digits', 3)} --also=dense_until=0.7"
CLAIMS = [
    Claim(
        "2:8 MLP kernels and rank-16 attention kernels, trained from the start, cost a small ViT "
        "at most 1 point of accuracy on digits, at less than half the bytes",
        "ours",
        claims_command("digits_vit", 5),
        "claims-digits_vit",
        against_dense,
        lambda r: loses_at_most(0.01)(r) if smaller(r) > 2 else verdict(False),
    ),
    Claim(
        "`finalize` loses nothing: the packed model's accuracy is the trained one's",
        "ours",
        claims_command("digits_vit", 5),
        "claims-digits_vit",
        lambda r: f"largest difference {finalize_loss(r):.4f} over {len(r['runs'])} runs",
        lambda r: verdict(finalize_loss(r) == 0),
    ),
    Claim(
        "2:4 MLP kernels (SR-STE) and rank-32 q and out kernels cost a byte-level decoder at most "
        "0.05 bits per byte",
        "ours",
        claims_command("python_source", 3),
        "claims-python_source",
        against_dense,
        loses_at_most(0.05),
    ),
    Claim(
        "1:4 convolutions (SR-STE) cost a ResNet-8 at most 1 point of accuracy on Fashion-MNIST",
        "ours",
        claims_command("fashion_mnist", 3),
        "claims-fashion_mnist",
        against_dense,
        loses_at_most(0.01),
    ),
    Claim(
        "Monarch kernels (4 blocks), trained from the start, cost a small ViT at most 1 point of "
        "accuracy on digits, at less than half the bytes",
        "ours",
        MONARCH_DIGITS,
        "claims-monarch_digits",
        against_dense,
        lambda r: loses_at_most(0.01)(r) if smaller(r) > 2 else verdict(False),
    ),
    Claim(
        "Dense kernels for 0.7 of the steps, then projected to Monarch and fine-tuned, are at "
        "least as good on digits as Monarch from random factors at equal steps",
        "ours",
        MONARCH_DIGITS,
        "claims-monarch_digits",
        until_dense,
        at_least_early,
    ),
    Claim(
        "Gradual pruning to 90 % by M-FAC, with fine-tuning, costs a digits MLP at most 1 point "
        "of accuracy",
        "ours",
        claims_command("mfac_digits", 3),
        "claims-mfac_digits",
        against_dense,
        loses_at_most(0.01),
    ),
    Claim(
        "The training loop reaches at least 0.95 of the steps per second of the same loop by hand",
        "ours",
        "python benchmarks/loop_overhead.py",
        "loop_overhead",
        lambda r: (
            f"ratio {r['ratio']:.3f} ({r['ratio_min']:.3f} to {r['ratio_max']:.3f}), "
            f"{r['repeats']} repeats"
        ),
        lambda r: verdict(r["ratio"] >= r["floor"]),
    ),
    Claim(
        "An accelerator's training losses are the CPU's to 0.01 over the first 50 steps",
        "ours",
        "python benchmarks/device_agreement.py",
        "device_agreement",
        lambda r: "; ".join(f"{Path(c).stem} {d:.4f}" for c, d in r["largest_difference"].items()),
        lambda r: verdict(max(r["largest_difference"].values()) <= r["tolerance"]),
    ),
]


def readme_table() -> str:
    """The table of the README: what each config reaches."""
    lines = [
        "| config | quality, finalized | dense | on disk | wall time | machine |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    configs = sorted({p.stem for p in (ROOT / "configs").glob("*.py")})
    for record in (r for config in configs for r in stored(f"claims-{config}")):
        result = record["result"]
        name = result["runs"][0]["quality"]["name"].replace("_", " ")
        cells = (
            f"`{record['benchmark'].removeprefix('claims-')}`",
            f"{name} {spread(qualities(result, 'default'))}",
            spread(qualities(result, "dense")),
            f"{smaller(result):.2f}x smaller",
            wall_time(record),
            f"{machine(record)}; seeds: {len(qualities(result, 'default'))}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def wall_time(record: dict[str, Any] | None) -> str:
    """Median wall time of a config's default runs."""
    if record is None:
        return "not run"
    seconds = [r["wall_seconds"] for r in record["result"]["runs"] if r["variant"] == "default"]
    shared = record["result"]["at_once"]
    note = f", {shared} runs at once" if shared > 1 else ""
    note += ", machine shared" if record["result"].get("shared") else ""
    return f"{statistics.median(seconds):.0f} s (median of {len(seconds)}{note})"


def claims_facts(config: str) -> dict[str, str]:
    """The generated lines of a config's docstring, if it was run by claims.py."""
    records = stored(f"claims-{config}")
    if not records:
        return {}
    on_cpu = next((r for r in records if r["device"] == CPU), None)
    on_gpu = next((r for r in records if "H100" in r["device"]), None)
    shown = max(records, key=lambda r: len(r["result"]["runs"]))
    return {
        "Wall time, 2 CPU cores:": wall_time(on_cpu),
        "Wall time, one H100:": wall_time(on_gpu),
        "Result:": against_dense(shown["result"]).replace(", ", ",; ", 1),
    }


# Of configs that another benchmark than claims.py runs.
FACTS = {
    "monarch_python_source": reverse_facts,
    "vmf_digits": vmf_facts,
    "vmf_docstrings": docstrings_facts,
    **GPHM_FACTS,
}


def with_config_facts(text: str, config: str) -> str:
    """A config's source with the generated lines of its docstring; "; " begins a new one."""
    facts = FACTS[config]() if config in FACTS else claims_facts(config)
    for label, value in facts.items():
        lines = value.replace(",; ", ",\n  ").replace(":; ", ":\n  ").replace("; ", ";\n  ")
        text = re.sub(
            rf"^{label}.*(\n  .*)*$", f"{label} {lines}", text, count=1, flags=re.MULTILINE
        )
    return text


def with_block(text: str, content: str, what: str = "generated") -> str:
    """A page with the content between its markers replaced."""
    begin, end = f"<!-- {what} by benchmarks/publish.py -->", "<!-- end -->"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{content}\n{end}{tail}"


def kernels_rewritten(text: str) -> str:
    """The page of the kernels, which begins with a summary."""
    return with_block(with_block(text, kernels_summary(), "summarized"), kernels_page())


def rewritten(text: str, content: Callable[[], str]) -> str:
    """A page with what belongs between its markers now."""
    return with_block(text, content())


BLOCKS = {
    "docs/claims.md": lambda: table(
        CLAIMS
        + NM_CLAIMS
        + COMPRESSION_CLAIMS
        + LOW_RANK_CLAIMS
        + MONARCH_CLAIMS
        + MINILM_CLAIMS
        + NUMERICS_CLAIMS
        + SECOND_ORDER_CLAIMS
        + MFAC_STEP_CLAIMS
        + MFAC_PRUNING_CLAIMS
        + GPHM_CLAIMS
        + KRON_CLAIMS
        + SPECIAL_CLAIMS
        + VMF_CLAIMS
        + KERNEL_CLAIMS
    ),
    "docs/nm_language_model.md": language_model_page,
    "docs/low_rank_digits.md": low_rank_page,
    "docs/low_rank_language_model.md": low_rank_language_model_page,
    "docs/monarch_small.md": monarch_small_page,
    "docs/reverse_sparsification.md": reverse_page,
    "docs/second_order.md": second_order_page,
    "docs/mfac_pruning.md": mfac_page,
    "docs/gphm.md": gphm_page,
    "docs/kron.md": kron_page,
    "docs/generation.md": decoding_page,
    "docs/special/bessel.md": bessel_page,
    "docs/special/vmf.md": vmf_page,
    "README.md": readme_table,
}


def main() -> None:
    """Rewrites the pages, or checks them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    pages: dict[Path, Callable[[str], str]] = {
        ROOT / name: partial(rewritten, content=content) for name, content in BLOCKS.items()
    }
    pages[ROOT / "docs" / "kernels.md"] = kernels_rewritten
    # Its markers name what draws its plot too.
    pages[ROOT / "docs" / "minilm.md"] = minilm_rewritten
    for path in sorted((ROOT / "configs").glob("*.py")):
        pages[path] = partial(with_config_facts, config=path.stem)
    stale = []
    for path, render in pages.items():
        text = path.read_text(encoding="utf-8")
        if render(text) != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(render(text), encoding="utf-8")
    print(("out of date: " if check else "rewritten: ") + (", ".join(stale) or "none"))
    if check and stale:
        sys.exit(1)


if __name__ == "__main__":
    main()
