"""Taps in the layers of a user's own flax model, which stays as it is written.

Layers of this library multiply with `@`, where a tap can stand in the place of the kernel
(`jaxlab.optim.mkor.attach_taps`); flax's own layers call a product of their choice, `dot_general`
or a convolution. The taps stand beside the kernels, among the parameters, so that every
transformation that slices a stack of layers slices their taps with it.
"""

from jaxlab.interop.flax_taps.linen import tapped_apply, tapped_layers
from jaxlab.interop.flax_taps.nnx import tap_model

__all__ = ["tap_model", "tapped_apply", "tapped_layers"]
