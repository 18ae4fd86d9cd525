"""Device memory that sleeps on the host: the storages of tensors, emptied and filled again in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class HostOffload:
    """Moves the storages of some tensors to host memory and back.

    Only storages change: a tensor, its views, and whoever holds them (an optimizer, DeepSpeed's flat partitions, tied
    parameters) stay valid, and two tensors that share a storage share it again. So this works for any model, optimizer
    and ZeRO stage. FSDP frees its parameters in the same way, by ``storage.resize_(0)``.

    For example, a (4,) float32 tensor and a view of its last two values have one storage of 16 bytes. ``sleep`` copies
    the 16 bytes once and leaves 0 on the device; ``wake`` fills them in, and both read what they read before.

    ``tensors`` and ``scratch`` are called at each sleep because an optimizer makes its states at its first step. What
    ``scratch`` returns is freed without a copy: its values are undefined afterwards.
    """

    def __init__(
        self, tensors: Callable[[], Iterable[Tensor]], scratch: Callable[[], Iterable[Tensor]] = tuple
    ) -> None:
        self._tensors, self._scratch = tensors, scratch
        self._asleep: list[tuple[torch.UntypedStorage, int]] = []  # storages of 0 bytes, and the bytes that they had
        self._buffers: dict[int, Tensor] = {}  # host buffers by their storage; kept, since pinning takes long
        self.is_asleep = False

    def sleep(self) -> int:
        """Copies the storages to the host and frees them; nothing if they sleep already. Returns the bytes freed."""
        if self.is_asleep:
            return 0
        scratch = _storages(self._scratch())
        storages = _storages(self._tensors()) | scratch
        self._buffers = {key: self._buffer(key, storages[key]) for key in storages.keys() - scratch.keys()}
        self._asleep = [(storage, storage.nbytes()) for storage in storages.values()]
        self._synchronize()  # other streams may still write
        for key, host in self._buffers.items():
            host.copy_(_bytes_of(storages[key]), non_blocking=True)
        self._synchronize()
        for storage in storages.values():
            storage.resize_(0)
        self.is_asleep = True
        return sum(num_bytes for _, num_bytes in self._asleep)

    def wake(self) -> int:
        """Fills the storages again; nothing if they are awake. Returns the bytes taken."""
        for storage, num_bytes in self._asleep:
            storage.resize_(num_bytes)
            if storage._cdata in self._buffers:
                _bytes_of(storage).copy_(self._buffers[storage._cdata], non_blocking=True)
        self._synchronize()
        taken = sum(num_bytes for _, num_bytes in self._asleep)
        self._asleep, self.is_asleep = [], False
        return taken

    def _synchronize(self) -> None:
        if self._asleep and self._asleep[0][0].device.type == "cuda":
            torch.cuda.synchronize(self._asleep[0][0].device)

    def _buffer(self, key: int, storage: torch.UntypedStorage) -> Tensor:
        """A host buffer for a storage, pinned if the storage is on a GPU; the one of the last sleep if it fits."""
        buffer = self._buffers.get(key)
        if buffer is not None and len(buffer) == storage.nbytes():
            return buffer
        return torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=storage.device.type == "cuda")


def release_cached_memory(device: torch.device) -> None:
    """Gives what the caching allocator keeps back to the device, where another process needs it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _storages(tensors: Iterable[Tensor]) -> dict[int, torch.UntypedStorage]:
    """The storages of tensors that hold bytes and can be resized, each once, by their address."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage._cdata: storage for storage in storages if storage.resizable() and storage.nbytes()}
