"""What all launchers share: arguments as the kernels want them, and the device they run on."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
import triton.language as tl
from torch import Tensor

from gkd_fast.kernels._spec import INTERPRETED

VECTOR = tl.constexpr(8)  # channels come in multiples of it: 16 bytes of a half type, twice 16 of float32
DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def cdiv(count: int, size: int) -> int:
    """Blocks of a size that hold a count; Triton's own takes 4 microseconds."""
    return -(-count // size)


_HERE = nullcontext()


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Makes the tensor's device the current one, whose current stream kernels are launched on."""
    elsewhere = tensor.is_cuda and tensor.get_device() != torch.cuda.current_device()
    return torch.cuda.device(tensor.device) if elsewhere else _HERE


def ready(tensor: Tensor) -> Tensor:
    """The tensor contiguous, from a multiple of 16 bytes on; a copy only where it is not so already."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def ready_vectors(*tensors: Tensor) -> list[Tensor]:
    """Vectors [...,C] in one dtype (float32 where theirs differ), filled up with zeros to whole VECTORs of channels.

    A tensor that is so already is given back itself.
    """
    dtype = tensors[0].dtype
    if any(tensor.dtype != dtype for tensor in tensors):
        tensors = tuple(tensor.float() for tensor in tensors)
    return [ready(_whole_vectors(tensor)) for tensor in tensors]


def _whole_vectors(tensor: Tensor) -> Tensor:
    missing = -tensor.shape[-1] % VECTOR.value
    return F.pad(tensor, (0, missing)) if missing else tensor  # pad copies where it adds nothing, too


def like_input(gradient: Tensor, tensor: Tensor) -> Tensor:
    """The gradient of a ready vector as that of the tensor it was made from."""
    if gradient.shape != tensor.shape:
        gradient = gradient[..., : tensor.shape[-1]]
    return gradient.to(tensor.dtype).contiguous()


def operand_type(dtype: torch.dtype) -> tl.dtype:
    """Type of the operands of products; the interpreter cannot multiply bfloat16."""
    return tl.float32 if INTERPRETED else DTYPES[dtype]


def product_precision(dtype: torch.dtype) -> str:
    """Of products of `dtype`: float32 is split into three TF32 parts unless torch's own products may round to one.

    Three products on the tensor cores lose only what is below the 22nd bit, at 2.5 to 5 times the rate of exact ones on
    the other cores (`bench.gpu.roofline`).
    """
    return precisions(dtype)[dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"]


def precisions(dtype: torch.dtype) -> tuple[str, ...]:
    """All that `product_precision` may say: products of half types are exact anyway."""
    return ("tf32x3", "tf32") if dtype == torch.float32 else ("ieee",)


def product_configuration(dtype: torch.dtype, precision: str) -> dict[str, Any]:
    """Of kernels that work out tiles [BLOCK_B,BLOCK_P] of inner products of vectors of `dtype`."""
    return {
        "OPERAND": operand_type(dtype),
        "PRECISION": precision,
        "BLOCK_B": 32,
        "BLOCK_P": 64,
        "BLOCK_C": 32 if dtype == torch.float32 else 64,
        "num_warps": 4,
        "num_stages": 3,
    }


def gradient_precision(dtype: torch.dtype, precision: str) -> str:
    """Of products of float32 coefficients with vectors of `dtype`.

    Half types fit into TF32; splitting the coefficients into three keeps them exact on the tensor cores.
    """
    return precision if dtype == torch.float32 else "tf32x3"
