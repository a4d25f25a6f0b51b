"""A safetensors file in parts, each tensor being its own memory: a file is written without a copy of what it holds."""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

KINDS = {  # what safetensors calls torch's dtypes
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.bool: "BOOL"},
    **{torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8"},
}


def file_parts(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """The parts that make a safetensors file: its header, and each tensor's bytes.

    Args:
        tensors: contiguous, in main memory.
        metadata: texts by name.

    Raises:
        ValueError: a tensor of a dtype that safetensors has no name for.
    """
    return [file_header(tensors, metadata), *(raw(tensors[name]) for name in _order(tensors))]


def file_header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """What a safetensors file begins with: how long its table is, and the table; of tensors on the meta device, too.

    Args:
        tensors, metadata: as for ``file_parts``.

    Raises:
        ValueError: as ``file_parts``.
    """
    fields: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in _order(tensors):
        tensor, begin = tensors[name], end
        if tensor.dtype not in KINDS:
            raise ValueError(f"{name} is {tensor.dtype}, which safetensors does not store")
        end += tensor.nbytes
        fields[name] = {"dtype": KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    table = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    table += b" " * (-len(table) % 8)
    return len(table).to_bytes(8, "little") + table


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    """The widest first, so that each is aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor in main memory: its own memory, not a copy."""
    if not tensor.numel():  # not every empty tensor lets itself be viewed as bytes
        return memoryview(b"")
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data
