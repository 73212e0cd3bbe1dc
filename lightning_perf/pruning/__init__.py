"""Pruning: weights that are zero and stay zero."""

from lightning_perf.pruning.sparse_inference import csr_copy as csr_copy
from lightning_perf.pruning.sparse_inference import semi_structured_copy as semi_structured_copy
