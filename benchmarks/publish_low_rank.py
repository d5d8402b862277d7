"""What was claimed of one-shot low rank in a language model, how it is judged, and its page."""

import textwrap
from collections.abc import Callable
from typing import Any

from claim import Claim, machine, stored, verdict
from numerics_page import table
from publish_compression import at_least, with_error

LANGUAGE_MODEL = "low_rank_language_model-large"
RATIOS = (0.9, 0.8, 0.6)
METHODS = ("LoRD", "SVD", "ASVD")
# Of what the dense model needs, the most that LoRD may lose at four fifths.
MARGIN = 0.02
# "Several times more": at least so many.
TIMES = 3
SECONDS = 20
_WAYS = (
    "uniform 0.6",
    "greedy 0.6",
    "sequential whitening 0.6",
    "sequential LoRD 0.6",
    "LoRD 0.6, recovered",
    "SVD 0.6, recovered",
)


def bits(result: Any, key: str) -> float:
    """Held-out bits per byte of a cell."""
    return result["cells"][key]["bits_per_byte"]


def lost(result: Any, key: str, other: str = "dense") -> list[float]:
    """By held-out batch, how many bits per byte a cell needs more than another."""
    a, b = (result["cells"][k]["by_batch"] for k in (key, other))
    return [x - y for x, y in zip(a, b, strict=True)]


def loss_in_percent(result: Any, key: str) -> float:
    """What a cell loses, of the dense model's bits per byte."""
    return 100 * (bits(result, key) / bits(result, "dense") - 1)


def _within(result: Any) -> str:
    most = MARGIN * bits(result, "dense")
    return at_least([most - x for x in lost(result, "LoRD 0.8")], 0)


def _several_times(result: Any) -> str:
    pairs = zip(lost(result, "SVD 0.8"), lost(result, "LoRD 0.8"), strict=True)
    return at_least([svd - TIMES * lord for svd, lord in pairs], 0)


def _losses(*methods: str) -> Callable[[Any], str]:
    def words(result: Any) -> str:
        parts = [f"{m} {loss_in_percent(result, f'{m} 0.8'):+.2f} %" for m in methods]
        return f"dense {bits(result, 'dense'):.4f} bits per byte; {', '.join(parts)}; 1 seed"

    return words


def _no_worse(key: str, other: str) -> tuple[Callable[[Any], str], Callable[[Any], str]]:
    def words(result: Any) -> str:
        return (
            f"bits per byte {bits(result, key):.4f} against {bits(result, other):.4f}; by held-out "
            f"batch {with_error(lost(result, key, other))}; 1 seed"
        )

    return words, lambda r: at_least(lost(r, other, key), 0)


def _ratio(result: Any, ratio: float) -> float:
    return result["cells"]["speed"]["forward"][f"LoRD {ratio}"]["ratio"]


def _speed_words(result: Any) -> str:
    parts = [f"{_ratio(result, r):.2f} at {r}" for r in RATIOS]
    tokens = " x ".join(map(str, result["cells"]["speed"]["tokens"]))
    return f"tokens per second of dense: {', '.join(parts)}; {tokens} tokens"


def to_compress(result: Any) -> float:
    """Seconds to calibrate and to decompose all MLP kernels by LoRD."""
    return result["calibration"]["seconds"] + result["cells"]["LoRD 0.9"]["seconds"]


_COMMAND = "python benchmarks/low_rank_language_model.py"
_PAPER = "Kaushal et al., 2023"
_ORDER = "Yu and Wu, 2023"
LOW_RANK_CLAIMS = [
    Claim(
        "One shot, LoRD at 0.8 of the MLP parameters costs a byte-level decoder of width 768 less "
        "than 2 % of its bits per byte",
        _PAPER, _COMMAND, LANGUAGE_MODEL, _losses("LoRD"), _within, ("dense", "LoRD 0.8"),
    ),
    Claim(
        "SVD at 0.8 loses several times more than LoRD: at least 3 times",
        _PAPER, _COMMAND, LANGUAGE_MODEL, _losses("LoRD", "SVD", "ASVD"), _several_times,
        ("dense", *(f"{m} 0.8" for m in METHODS)),
    ),
    Claim(
        "At 0.6, whitening each kernel on the inputs behind those compressed before is at least as "
        "good as LoRD of all at once",
        "ours", _COMMAND, LANGUAGE_MODEL,
        *_no_worse("sequential whitening 0.6", "LoRD 0.6"),
        ("sequential whitening 0.6", "LoRD 0.6"),
    ),
    Claim(
        "At 0.6, sequential LoRD, which makes up for the kernels before, is at least as good as "
        "LoRD of all at once",
        _ORDER, _COMMAND, LANGUAGE_MODEL, *_no_worse("sequential LoRD 0.6", "LoRD 0.6"),
        ("sequential LoRD 0.6", "LoRD 0.6"),
    ),
    Claim(
        "At 0.6, ranks shared out greedily by spectra are at least as good as equal ones of the "
        "same parameters",
        "ours", _COMMAND, LANGUAGE_MODEL, *_no_worse("greedy 0.6", "uniform 0.6"),
        ("greedy 0.6", "uniform 0.6"),
    ),
    Claim(
        "The compressed decoder reads at least as many tokens per second as the dense one from "
        "0.8 of the MLP parameters on (forward pass, bfloat16)",
        _PAPER, _COMMAND, LANGUAGE_MODEL, _speed_words,
        lambda r: verdict(all(_ratio(r, x) >= 1 for x in RATIOS if x <= 0.8)), ("speed",),
    ),
    Claim(
        "Calibrating and decomposing the MLP kernels of 12 layers of width 768 by LoRD takes less "
        "than 20 s, compilation counted",
        "ours", _COMMAND, LANGUAGE_MODEL,
        lambda r: f"{to_compress(r):.1f} s, {r['calibration']['tokens']} tokens",
        lambda r: verdict(to_compress(r) < SECONDS), ("LoRD 0.9",),
    ),
]  # fmt: skip


def low_rank_language_model_page() -> str:
    """What stands between the markers of docs/low_rank_language_model.md."""
    parts = [part for record in stored(LANGUAGE_MODEL) for part in _sections(record)]
    return "\n\n".join(p if p[0] in "|#" else _wrapped(p) for p in parts) or "Not run."


def _sections(record: dict[str, Any]) -> list[str]:
    result = record["result"]
    cells, model = result["cells"], result["model"]
    data = model["data"]
    about = (
        f"{model['steps']} steps of training; {data['train_items'] / 1e6:.1f} million bytes of "
        f"Python {data['python']}'s standard library to train on, {data['eval_targets']} bytes of "
        f"{len(data['eval_modules'])} other modules held out; 1 seed. Dense: "
        f"{bits(result, 'dense'):.4f} bits per byte. Machine: {machine(record)}."
    )
    one_shot = [[str(r), *(_cell(result, f"{m} {r}") for m in METHODS)] for r in RATIOS]
    found = ["## Bits per byte", about, table(["kept", *METHODS], one_shot)]
    ways = [[key, _kept(result, key), _cell(result, key)] for key in _WAYS if key in cells]
    if ways:
        base = [["LoRD 0.6", _kept(result, "LoRD 0.6"), _cell(result, "LoRD 0.6")]]
        found.append(table(["at 0.6", "stored", "bits per byte"], base + ways))
    if "speed" in cells:
        found += ["## Time", *_times(result)]
    return found


def _cell(result: Any, key: str) -> str:
    if key not in result["cells"]:
        return "not run"
    return f"{bits(result, key):.4f} ({loss_in_percent(result, key):+.2f} %)"


def _kept(result: Any, key: str) -> str:
    return f"{result['cells'][key]['kept']:.3f}"


def _times(result: Any) -> list[str]:
    speed = result["cells"]["speed"]
    rows = []
    for key, found in speed["forward"].items():
        low, high = found["spread"]
        ratio = f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})"
        factored = f"{found['factored_bits_per_byte']:.4f}"
        rows.append([key, f"{found['tokens_per_second'] / 1e6:.2f}", ratio, factored])
    seconds = [result["cells"][f"{m} 0.9"]["seconds"] for m in METHODS]
    batch, length = speed["tokens"]
    about = (
        f"Forward pass of {batch} rows of {length} tokens, {speed['dtype']}: medians, "
        f"and the ratios' range over the rounds; bits per byte of the factors as they are "
        f"multiplied. Calibration on {result['calibration']['tokens']} tokens took "
        f"{result['calibration']['seconds']:.1f} s, and the decompositions "
        f"{', '.join(f'{s:.1f} s ({m})' for m, s in zip(METHODS, seconds, strict=True))}, "
        "compilation counted."
    )
    head = ["model", "million tokens per second", "of dense", "bits per byte, factored"]
    return [about, table(head, rows)]


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_on_hyphens=False)
