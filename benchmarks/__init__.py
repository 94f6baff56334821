"""Benchmarks of the criterion against its peers, on the same tensors and side by side: `make bench`."""

import os

# One thread for everybody: torch is told so, but numpy's BLAS, which POT uses, reads this when it is first imported.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
