"""GPU memory through the CUDA driver, without torch, for the fault engine to take, cache, leak and break."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Final

from ..cuda_errors import POISONING

_MIB: Final = 1 << 20
#: The driver maps memory in pages of this size.
_PAGE: Final = 2 * _MIB
_OUT_OF_MEMORY: Final = 2
#: The first request of :meth:`FaultGpu.exhaust`; it continues with halves until no page is left.
_LARGEST_BITE: Final = 1 << 30

#: A kernel that stores to an address, in PTX for the oldest architecture that current drivers accept.
_KERNEL: Final = b"store_to"
_PTX: Final = b"""
.version 6.0
.target sm_50
.address_size 64
.visible .entry store_to(.param .u64 where)
{
    .reg .b64 %address;
    .reg .b32 %value;
    ld.param.u64 %address, [where];
    cvta.to.global.u64 %address, %address;
    mov.u32 %value, 1;
    st.global.u32 [%address], %value;
    ret;
}
\0"""
#: Never mapped, not even on a GPU that sees the host's memory: the operating system forbids it.
_WILD_ADDRESS: Final = 16


class NoGpuError(Exception):
    """There is no CUDA driver, or it finds no GPU."""


class CudaError(RuntimeError):
    """A call of the driver failed. ``error_code`` is the driver's number, as in torch.AcceleratorError."""

    def __init__(self, message: str, error_code: int) -> None:
        super().__init__(message)
        self.error_code = error_code

    @property
    def poisons(self) -> bool:
        """Whether every further call of this process fails."""
        return self.error_code in POISONING


class OutOfMemoryError(CudaError):
    """The GPU, or this process's share of it, has too little free memory. Named as torch's own."""


@dataclass(slots=True, eq=False)
class Block:
    """Memory of the driver: ``size`` bytes, of which ``live`` are in use; 0: it is cache."""

    address: int
    size: int
    live: int


class FaultGpu:
    """The first visible GPU, with an allocator that keeps released memory as cache, as torch's does.

    Owns the blocks of memory; :meth:`trim` frees those that are not in use. Raises NoGpuError if there is no GPU.
    """

    def __init__(self, share: float = 0.0) -> None:
        try:
            self._cuda: Any = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise NoGpuError(f"there is no CUDA driver here ({error})") from None
        device = ctypes.c_int()
        context = ctypes.c_void_p()
        if self._cuda.cuInit(0) or self._cuda.cuDeviceGet(ctypes.byref(device), 0):
            raise NoGpuError("the CUDA driver finds no GPU")
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        total = ctypes.c_size_t()
        self._call("cuDeviceTotalMem_v2", ctypes.byref(total), device)
        self.total = total.value
        self._limit = int(share * self.total) if share > 0 else self.total
        self._blocks: list[Block] = []

    @property
    def allocated(self) -> int:
        """Bytes in use."""
        return sum(block.live for block in self._blocks)

    @property
    def reserved(self) -> int:
        """Bytes in use or cached."""
        return sum(block.size for block in self._blocks)

    def take(self, size: int) -> Block:
        """Use ``size`` bytes, from the cache where a block is large enough. Raises OutOfMemoryError."""
        size = _whole_pages(size)
        fitting = [block for block in self._blocks if not block.live and block.size >= size]
        block = min(fitting, key=lambda block: block.size, default=None) or self._new_block(size)
        block.live = size
        return block

    def release(self, block: Block) -> None:
        """Return a block to the cache."""
        block.live = 0

    def grow_cache(self, size: int) -> None:
        """Cache ``size`` bytes more, as an allocator whose cached pieces fit no request."""
        self._new_block(_whole_pages(size))

    def take_outside(self, size: int) -> None:
        """Take ``size`` bytes for good without the allocator, as a library that calls the driver itself."""
        self._allocate(_whole_pages(size))

    def trim(self) -> None:
        """Return the cache to the driver."""
        for block in self._blocks:
            if not block.live:
                self._call("cuMemFree_v2", ctypes.c_uint64(block.address))
        self._blocks = [block for block in self._blocks if block.live]

    def exhaust(self) -> None:
        """Take all free memory. Always raises OutOfMemoryError."""
        bite = _LARGEST_BITE
        while True:
            try:
                self.take(bite)
            except OutOfMemoryError:
                if bite <= _PAGE:
                    raise
                bite //= 2

    def store_to(self, address: int) -> None:
        """Run a kernel that stores to this address, and wait for it. Raises CudaError."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(_PTX))
        self._call("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(_KERNEL))
        where = ctypes.c_uint64(address)
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(where))
        self._call("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, None, arguments, None)
        self._call("cuCtxSynchronize")

    def break_context(self) -> None:
        """Store to unmapped memory, after which every call of this process fails. Raises CudaError."""
        self.store_to(_WILD_ADDRESS)

    def _new_block(self, size: int) -> Block:
        """Unused memory from the driver; if there is none, the cache is freed first."""
        try:
            address = self._within_limit(size)
        except OutOfMemoryError:
            self.trim()
            address = self._within_limit(size)
        self._blocks.append(Block(address, size, 0))
        return self._blocks[-1]

    def _within_limit(self, size: int) -> int:
        if self.reserved + size > self._limit:
            raise self._no_memory(size, f"this worker may use {self._limit // _MIB} MiB of it")
        return self._allocate(size)

    def _allocate(self, size: int) -> int:
        address = ctypes.c_uint64()
        code = self._cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size))
        if code == _OUT_OF_MEMORY:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
            raise self._no_memory(size, f"{free.value // _MIB} MiB are free")
        self._check("cuMemAlloc_v2", code)
        return address.value

    def _no_memory(self, size: int, why: str) -> OutOfMemoryError:
        return OutOfMemoryError(
            f"CUDA out of memory: tried to allocate {size // _MIB} MiB; the GPU has {self.total // _MIB} MiB, {why}; "
            f"{self.allocated // _MIB} MiB are allocated and {self.reserved // _MIB} MiB reserved by this worker",
            _OUT_OF_MEMORY,
        )

    def _call(self, name: str, *arguments: Any) -> None:
        self._check(name, getattr(self._cuda, name)(*arguments))

    def _check(self, name: str, code: int) -> None:
        if not code:
            return
        text = ctypes.c_char_p()
        self._cuda.cuGetErrorString(code, ctypes.byref(text))
        words = f"CUDA error: {(text.value or b'unknown').decode(errors='replace')} ({name} returned {code})"
        raise (OutOfMemoryError if code == _OUT_OF_MEMORY else CudaError)(words, code)


def _whole_pages(size: int) -> int:
    return max(1, -(-size // _PAGE)) * _PAGE
