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

    ``tensors`` is called at each sleep because an optimizer makes its states at its first step.
    """

    def __init__(self, tensors: Callable[[], Iterable[Tensor]]) -> None:
        self._tensors = tensors
        self._asleep: list[tuple[torch.UntypedStorage, Tensor]] = []  # a storage of 0 bytes, and its bytes on the host
        self._buffers: dict[int, Tensor] = {}  # host buffers by their storage; kept, since pinning takes long
        self.is_asleep = False

    def sleep(self) -> int:
        """Copies the storages to the host and frees them; nothing if they sleep already. Returns the bytes freed."""
        if self.is_asleep:
            return 0
        storages = {s._cdata: s for s in (t.untyped_storage() for t in self._tensors()) if s.resizable() and s.nbytes()}
        self._buffers = {key: self._buffer(key, storage) for key, storage in storages.items()}
        self._asleep = [(storage, self._buffers[key]) for key, storage in storages.items()]
        _synchronize(self._asleep)  # other streams may still write
        for storage, host in self._asleep:
            host.copy_(_bytes_of(storage), non_blocking=True)
        _synchronize(self._asleep)
        for storage, _ in self._asleep:
            storage.resize_(0)
        self.is_asleep = True
        return sum(len(host) for _, host in self._asleep)

    def wake(self) -> int:
        """Fills the storages again; nothing if they are awake. Returns the bytes taken."""
        taken = sum(len(host) for _, host in self._asleep)
        for storage, host in self._asleep:
            storage.resize_(len(host))
            _bytes_of(storage).copy_(host, non_blocking=True)
        _synchronize(self._asleep)
        self._asleep, self.is_asleep = [], False
        return taken

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


def _synchronize(pairs: list[tuple[torch.UntypedStorage, Tensor]]) -> None:
    if pairs and pairs[0][0].device.type == "cuda":
        torch.cuda.synchronize(pairs[0][0].device)
