"""Triton kernels compiled for GPUs that need not be here: registers, shared memory, spills, instructions in fp64.

Not while TRITON_INTERPRET=1: an interpreted kernel cannot be compiled.
"""

import re
import subprocess
import tempfile
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bitfast.ops._triton import Launch

CAPABILITIES = (80, 90, 100)  # of the GPUs compiled for: A100, H100 and H200, B200

_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}
_FP64 = re.compile(r"^\s.*\.f64\b", re.MULTILINE)


class Resources(NamedTuple):
    """Of one compiled kernel; registers per thread, the others per block or in all."""

    registers: int
    shared_bytes: int
    spill_bytes: int
    fp64_instructions: int


def compiled(launch: Launch, capability: int) -> Resources:
    """Compile the kernel of a launch, its arguments specialized as Triton does at run time, and read what it takes."""
    signature, constants, attributes = {}, dict(launch.constants), {}
    arguments = zip(launch.kernel.params, launch.arguments, strict=False)
    for i, (parameter, value) in enumerate(arguments):
        constant = value is None or (type(value) is int and value == 1 and not parameter.do_not_specialize)
        if constant:
            constants[parameter.name] = value
        else:
            signature[parameter.name] = _type(value)
            aligned = isinstance(value, Tensor) or (type(value) is int and value % 16 == 0)
            if aligned and not parameter.do_not_specialize:
                attributes[(i,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(constants, "constexpr")
    ordered = {name: signature[name] for name in launch.kernel.arg_names}
    source = ASTSource(launch.kernel, ordered, constants, attributes)
    options = {"num_warps": launch.num_warps, "maxnreg": launch.maxnreg}
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    used = _resource_usage(kernel.asm["cubin"])
    return Resources(
        registers=used["REG"],
        shared_bytes=kernel.metadata.shared,
        spill_bytes=used["STACK"] + used["LOCAL"],
        fp64_instructions=len(_FP64.findall(kernel.asm["ptx"])),
    )


def _type(value) -> str:
    if isinstance(value, Tensor):
        return "*" + _TYPES[value.dtype]
    if type(value) is float:
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _resource_usage(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
