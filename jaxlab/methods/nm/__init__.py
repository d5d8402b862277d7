"""N:M sparsity: of every m consecutive weights along an axis, the n largest are kept.

`matrix` has the trainable form, `packed`, `quantized` and `planes` the stored ones; `schedule` and
`recipes` say how a pattern closes, `oneshot` prunes without training, `flops` counts what all of it
costs.
"""

from jaxlab.methods.nm.flops import nm_iso_flop_table, nm_train_flops
from jaxlab.methods.nm.forward import nm_diagnostics, nm_effective, srste_regularise
from jaxlab.methods.nm.layerwise import nm_layerwise, nm_layerwise_rules
from jaxlab.methods.nm.mask import NMPattern, nm_mask
from jaxlab.methods.nm.matrix import NM
from jaxlab.methods.nm.nvidia import pack_24_nvidia
from jaxlab.methods.nm.oneshot import nm_one_shot, sparsegpt_prune, wanda_scores
from jaxlab.methods.nm.packed import NMPacked, nm_matmul, nm_pack, nm_unpack
from jaxlab.methods.nm.planes import NMPlanes, nm_pack_planes
from jaxlab.methods.nm.prune import nm_finalize, nm_prune
from jaxlab.methods.nm.quantized import NMQuantized
from jaxlab.methods.nm.schedule import NMConfig, Phase, nm_frames, nm_phase

__all__ = [
    "NM",
    "NMConfig",
    "NMPacked",
    "NMPattern",
    "NMPlanes",
    "NMQuantized",
    "Phase",
    "nm_diagnostics",
    "nm_effective",
    "nm_finalize",
    "nm_frames",
    "nm_iso_flop_table",
    "nm_layerwise",
    "nm_layerwise_rules",
    "nm_mask",
    "nm_matmul",
    "nm_one_shot",
    "nm_pack",
    "nm_pack_planes",
    "nm_phase",
    "nm_prune",
    "nm_train_flops",
    "nm_unpack",
    "pack_24_nvidia",
    "sparsegpt_prune",
    "srste_regularise",
    "wanda_scores",
]
