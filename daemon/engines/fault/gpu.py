"""GPU memory through the CUDA driver itself, without torch: what the fault engine takes, caches, leaks and breaks."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any, Final

from ..cuda_errors import POISONING

_MIB: Final = 1 << 20
#: The driver maps memory in pages of this size: smaller requests would only hide what they take.
_PAGE: Final = 2 * _MIB
_OUT_OF_MEMORY: Final = 2
#: How :meth:`FaultGpu.exhaust` begins; it goes on with halves until not even a page is left.
_LARGEST_BITE: Final = 1 << 30

#: Stores to the address that it is given. PTX of the oldest architecture that current drivers translate from.
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
#: No program has memory here, not even where a GPU sees the memory of the host: the kernel of the host forbids it.
_WILD_ADDRESS: Final = 16


class NoGpuError(Exception):
    """There is no CUDA driver, or it sees no GPU."""


class CudaError(RuntimeError):
    """A call of the driver failed. ``error_code`` is the driver's number, as in torch.AcceleratorError."""

    def __init__(self, message: str, error_code: int) -> None:
        super().__init__(message)
        self.error_code = error_code

    @property
    def poisons(self) -> bool:
        """Whether every further call of this process fails too."""
        return self.error_code in POISONING


class OutOfMemoryError(CudaError):
    """The GPU, or this process's share of it, has no room for what was asked. Named as torch's own."""


@dataclass(slots=True, eq=False)
class Block:
    """A part of a segment; ``live`` while somebody uses it, else it is cache."""

    address: int
    size: int
    live: bool


@dataclass(slots=True, eq=False)
class _Segment:
    """What one call of cuMemAlloc gave, and how it is divided now."""

    address: int
    size: int
    blocks: list[Block] = field(default_factory=list)


class FaultGpu:
    """The first visible GPU, with an allocator that keeps what is released, as torch's does.

    Memory is asked of the driver in segments, which are split for smaller requests; released neighbours are joined
    again; :meth:`trim` frees the segments of which nothing is live. Raises NoGpuError where there is no GPU.
    """

    def __init__(self, share: float = 0.0) -> None:
        try:
            self._cuda: Any = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise NoGpuError(f"there is no CUDA driver here ({error})") from None
        device = ctypes.c_int()
        context = ctypes.c_void_p()
        if self._cuda.cuInit(0) or self._cuda.cuDeviceGet(ctypes.byref(device), 0):
            raise NoGpuError("the CUDA driver sees no GPU")
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        total = ctypes.c_size_t()
        self._call("cuDeviceTotalMem_v2", ctypes.byref(total), device)
        self.total = total.value
        self._limit = int(share * self.total) if share > 0 else self.total
        self._segments: list[_Segment] = []

    @property
    def allocated(self) -> int:
        """Bytes that are live."""
        return sum(block.size for segment in self._segments for block in segment.blocks if block.live)

    @property
    def reserved(self) -> int:
        """Bytes that are live or cached."""
        return sum(segment.size for segment in self._segments)

    def take(self, size: int) -> Block:
        """Live memory of that many bytes, out of the cache where it has room. Raises OutOfMemoryError."""
        size = _whole_pages(size)
        block = self._cached(size)
        if block is None:
            segment = self._segment(size)
            block = Block(segment.address, size, live=True)
            segment.blocks.append(block)
        return block

    def release(self, block: Block) -> None:
        """Back into the cache."""
        block.live = False
        segment = next(segment for segment in self._segments if block in segment.blocks)
        joined: list[Block] = []
        for one in segment.blocks:
            if joined and not one.live and not joined[-1].live:
                joined[-1].size += one.size
            else:
                joined.append(one)
        segment.blocks = joined

    def grow_cache(self, size: int) -> None:
        """Cache that many bytes more, as an allocator whose pieces fit nothing that is asked for."""
        segment = self._segment(_whole_pages(size))
        segment.blocks.append(Block(segment.address, segment.size, live=False))

    def take_outside(self, size: int) -> None:
        """Take that many bytes for good behind the allocator's back, as a library that calls the driver by itself."""
        self._allocate(_whole_pages(size))

    def trim(self) -> None:
        """Give the driver back what nobody uses."""
        kept: list[_Segment] = []
        for segment in self._segments:
            if any(block.live for block in segment.blocks):
                kept.append(segment)
            else:
                self._call("cuMemFree_v2", ctypes.c_uint64(segment.address))
        self._segments = kept

    def exhaust(self) -> None:
        """Take everything that is left. Always ends in OutOfMemoryError."""
        bite = _LARGEST_BITE
        while True:
            try:
                self.take(bite)
            except OutOfMemoryError:
                if bite <= _PAGE:
                    raise
                bite //= 2

    def store_to(self, address: int) -> None:
        """Let a kernel store to this address, and wait for it. Raises CudaError."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(_PTX))
        self._call("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(_KERNEL))
        where = ctypes.c_uint64(address)
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(where))
        self._call("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, None, arguments, None)
        self._call("cuCtxSynchronize")

    def break_context(self) -> None:
        """Store where nothing is: after that no call of this process succeeds. Raises CudaError."""
        self.store_to(_WILD_ADDRESS)

    def _cached(self, size: int) -> Block | None:
        """The smallest cached block that is large enough, split, and live now."""
        fitting = [
            (block.size, index, segment)
            for segment in self._segments
            for index, block in enumerate(segment.blocks)
            if not block.live and block.size >= size
        ]
        if not fitting:
            return None
        _, index, segment = min(fitting, key=lambda found: found[0])
        block = segment.blocks[index]
        if block.size > size:
            segment.blocks.insert(index + 1, Block(block.address + size, block.size - size, live=False))
            block.size = size
        block.live = True
        return block

    def _segment(self, size: int) -> _Segment:
        """Memory from the driver; when there is none, the cache goes first."""
        try:
            segment = _Segment(self._within_limit(size), size)
        except OutOfMemoryError:
            self.trim()
            segment = _Segment(self._within_limit(size), size)
        self._segments.append(segment)
        return segment

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
