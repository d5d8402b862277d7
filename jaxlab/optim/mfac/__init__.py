"""M-FAC: the empirical Fisher of m gradients, whose inverse needs no d x d array.

Source: E. Frantar, E. Kurtic, D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of
Second-Order Information", NeurIPS 2021. As an optimizer: docs/optim/mfac.md.
"""

from jaxlab.optim.mfac.blocks import BlockFactor as BlockFactor
from jaxlab.optim.mfac.blocks import block_diag as block_diag
from jaxlab.optim.mfac.blocks import block_factor as block_factor
from jaxlab.optim.mfac.blocks import block_groups as block_groups
from jaxlab.optim.mfac.blocks import block_ihvp as block_ihvp
from jaxlab.optim.mfac.coefficients import mfac_coefficients as mfac_coefficients
from jaxlab.optim.mfac.compressed import SparseRows as SparseRows
from jaxlab.optim.mfac.compressed import TopK as TopK
from jaxlab.optim.mfac.factor import FisherFactor as FisherFactor
from jaxlab.optim.mfac.factor import static_block as static_block
from jaxlab.optim.mfac.factor import static_diag as static_diag
from jaxlab.optim.mfac.factor import static_element as static_element
from jaxlab.optim.mfac.factor import static_factor as static_factor
from jaxlab.optim.mfac.factor import static_ihvp as static_ihvp
from jaxlab.optim.mfac.obs import obs_prune_step as obs_prune_step
from jaxlab.optim.mfac.obs import obs_saliency as obs_saliency
from jaxlab.optim.mfac.obs import obs_update as obs_update
from jaxlab.optim.mfac.obs_nm import obs_nm_step as obs_nm_step
from jaxlab.optim.mfac.transform import MfacState as MfacState
from jaxlab.optim.mfac.transform import mfac as mfac
from jaxlab.optim.mfac.transform import scale_by_mfac as scale_by_mfac
from jaxlab.optim.mfac.window import FisherWindow as FisherWindow
from jaxlab.optim.mfac.window import ihvp as ihvp
from jaxlab.optim.mfac.window import precondition_row as precondition_row
from jaxlab.optim.mfac.window import window_init as window_init
from jaxlab.optim.mfac.window import window_push as window_push
