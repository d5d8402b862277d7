"""Makes bessel_pairs.txt with mpmath: every value as the sum of two float64 numbers.

    python tests/special/data/make_bessel_pairs.py

Minutes. Rows are v, x, then for every name of `reference.NAMES` the value and what it leaves.
"""

from pathlib import Path

import numpy as np

from jaxlab.special.bessel.reference import NAMES, bessel_reference_table

# hypot(v, x) = 25, x = 1e-8 and the orders where K's limit changes its form; both sides of each.
_BORDERS = [(25.0, 1e-3), (25.0, 0.5), (20.0, 15.0), (15.0, 20.0), (0.5, 25.0), (1e-4, 25.0)]
_BORDERS += [(v, 1e-8) for v in (0.01, 0.5, 0.95, 1.0, 10.0)]
_BORDERS += [(0.5, 1e-9), (0.95, 1e-12), (0.499, 1e-30)]
_SIDES = (1 - 1e-15, 1.0, 1 + 1e-15)
# Whole and half orders, x near v, the zeros of log K and log I, and the ends of the range.
_OTHERS = [(v, x) for v in (0.0, 0.5, 1.0, 1.5, 2.0) for x in (1e-300, 1e-12, 0.3, 24.0, 700.0)]
_OTHERS += [(v, v * s) for v in (3.0, 60.0, 1e4) for s in (0.5, 1.0, 1.5)]
_OTHERS += [(1e-6, 0.42105), (1.0, 1.47), (300.0, 197.4), (30.0, 22.0), (1e6, 662741.0)]
_OTHERS += [(1e-6, 1e-300), (1e8, 1e-300), (1e-6, 1e300), (1e8, 1e300), (20.0, 1e-300)]


def main() -> None:
    """Writes the table beside this file."""
    at = [(v * s, x * s) for v, x in _BORDERS for s in _SIDES] + _OTHERS
    # At the ends of the range the table's difference quotients need as many digits as x^2 has.
    tables = [
        bessel_reference_table([v], [x], dps=60 if 1e-100 < x < 1e100 else 700) for v, x in at
    ]
    with open(Path(__file__).parent / "bessel_pairs.txt", "w", encoding="utf-8") as file:
        print("# v x", *(f"{name} rest" for name in NAMES), file=file)
        for (v, x), table in zip(at, tables, strict=True):
            row = [float(v), float(x), *np.ravel([table[name][0] for name in NAMES])]
            print(*(repr(float(number)) for number in row), file=file)


if __name__ == "__main__":
    main()
