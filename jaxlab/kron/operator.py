"""The public names of the Kronecker algebra: which of them solves what is said in docs/kron.md."""

from jaxlab.kron.factorise import KronCholesky as KronCholesky
from jaxlab.kron.factorise import kron_cholesky as kron_cholesky
from jaxlab.kron.factorise import kron_eigh as kron_eigh
from jaxlab.kron.factorise import kron_logdet as kron_logdet
from jaxlab.kron.factorise import kron_solve as kron_solve
from jaxlab.kron.factorise import kron_sqrt_matvec as kron_sqrt_matvec
from jaxlab.kron.product import kron_dense as kron_dense
from jaxlab.kron.product import kron_diag as kron_diag
from jaxlab.kron.product import kron_matmat as kron_matmat
from jaxlab.kron.product import kron_matvec as kron_matvec
from jaxlab.kron.product import kron_outer as kron_outer
from jaxlab.kron.product import kron_trace as kron_trace
from jaxlab.kron.shifted import eigh_add_scalar_logdet as eigh_add_scalar_logdet
from jaxlab.kron.shifted import eigh_add_scalar_solve as eigh_add_scalar_solve
from jaxlab.kron.shifted import kron_add_scalar_logdet as kron_add_scalar_logdet
from jaxlab.kron.shifted import kron_add_scalar_quad as kron_add_scalar_quad
from jaxlab.kron.shifted import kron_add_scalar_solve as kron_add_scalar_solve
from jaxlab.kron.sums import kron_sum_logdet as kron_sum_logdet
from jaxlab.kron.sums import kron_sum_solve as kron_sum_solve
