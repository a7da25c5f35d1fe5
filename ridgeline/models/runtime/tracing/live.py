"""The bytes of all tensors alive on the device, by who made them."""

import weakref
from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


class _Storage:
    """One storage: whose it is, and how many bytes it counts for."""

    __slots__ = ("owner", "ref", "size_bytes")

    def __init__(self, owner: str, size_bytes: int, ref: "weakref.ref[torch.UntypedStorage]") -> None:
        self.owner, self.size_bytes, self.ref = owner, size_bytes, ref


class LiveBytes:
    """Storages seen so far and still alive.

    Attributes:
        total: Their bytes.
        by_owner: The same by who made them.
    """

    def __init__(self) -> None:
        self.total = 0
        self.by_owner: dict[str, int] = {}
        self._storages: dict[int, _Storage] = {}

    def see(self, tensors: Iterable[object], owner: str) -> None:
        """Count the storages of tensors on the device; new ones belong to ``owner``."""
        for storage in _on_device(tensors):
            known = self._storages.get(id(storage))
            size = storage.nbytes()
            if known is None:
                ref = weakref.ref(storage, partial(self._gone, id(storage)))
                self._storages[id(storage)] = _Storage(owner, size, ref)
                self._add(owner, size)
            elif known.size_bytes != size:
                self._resize(known, size)

    def own(self, tensors: Iterable[object], owner: str) -> None:
        """Say whose storages are that may have been seen before."""
        self.see(tensors, owner)
        for storage in _on_device(tensors):
            known = self._storages[id(storage)]
            self._add(known.owner, -known.size_bytes)
            known.owner = owner
            self._add(owner, known.size_bytes)

    def measure(self) -> None:
        """Take note of storages that were given back or refilled behind torch's operators (``resize_``)."""
        for known in self._storages.values():
            storage = known.ref()
            if storage is not None and storage.nbytes() != known.size_bytes:
                self._resize(known, storage.nbytes())

    def _gone(self, key: int, ref: object) -> None:
        known = self._storages.pop(key)
        self._add(known.owner, -known.size_bytes)

    def _resize(self, known: _Storage, size_bytes: int) -> None:
        self._add(known.owner, size_bytes - known.size_bytes)
        known.size_bytes = size_bytes

    def _add(self, owner: str, size_bytes: int) -> None:
        self.total += size_bytes
        self.by_owner[owner] = self.by_owner.get(owner, 0) + size_bytes


def _on_device(tensors: Iterable[object]) -> Iterator[torch.UntypedStorage]:
    for tensor in tensors:
        if isinstance(tensor, FakeTensor) and tensor.fake_device.type == "npu":
            yield Tensor.untyped_storage(tensor)
