"""Operations on lists of tensors, one call for all of them.

Private names of torch, which its own optimizers are written in; they stand here and nowhere else. On CUDA each is a
handful of kernels, on a CPU a loop in C++.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import torch
from torch import Tensor

Tensors = list[Tensor] | tuple[Tensor, ...]

abs_ = torch._foreach_abs_
add = torch._foreach_add
add_ = torch._foreach_add_
addcdiv_ = torch._foreach_addcdiv_
addcmul_ = torch._foreach_addcmul_
copy_ = torch._foreach_copy_
div_ = torch._foreach_div_
fused_adamw_ = torch._fused_adamw_
lerp = torch._foreach_lerp
lerp_ = torch._foreach_lerp_
mul_ = torch._foreach_mul_
sign_ = torch._foreach_sign_
sqrt = torch._foreach_sqrt
sub = torch._foreach_sub
