"""How much memory tensors take, whatever the device."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's modes have no types
    """The most bytes that were alive at once after any operation, of tensors made within."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                reference = StorageWeakRef(leaf.untyped_storage())  # type: ignore[no-untyped-call]
                self.alive[reference.cdata] = (reference, leaf.untyped_storage().nbytes())
        gone = [key for key, (storage, _) in self.alive.items() if storage.expired()]  # type: ignore[no-untyped-call]
        for key in gone:
            del self.alive[key]
        self.bytes = max(self.bytes, sum(nbytes for _, nbytes in self.alive.values()))
        return output
