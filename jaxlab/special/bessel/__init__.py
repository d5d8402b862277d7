"""Logarithms of modified Bessel functions.

`functions` is what is public; `regions` chooses between `debye`, `series` and `integral`;
`logarithm` serves `debye`; `published` is the scheme that others use.
"""

from jaxlab.special.bessel.functions import (
    iv_ratio,
    kv_ratio,
    log_iv,
    log_iv_dv,
    log_iv_dx,
    log_ive,
    log_kv,
    log_kv_dv,
    log_kv_dx,
    log_kve,
)

__all__ = [
    "iv_ratio",
    "kv_ratio",
    "log_iv",
    "log_iv_dv",
    "log_iv_dx",
    "log_ive",
    "log_kv",
    "log_kv_dv",
    "log_kv_dx",
    "log_kve",
]
