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
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = self.made_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                reference = StorageWeakRef(leaf.untyped_storage())  # type: ignore[no-untyped-call]
                self.made_bytes -= self.made.get(reference.cdata, (None, 0))[1]
                self.made[reference.cdata] = (reference, leaf.untyped_storage().nbytes())
                self.made_bytes += leaf.untyped_storage().nbytes()
        if self.made_bytes > self.bytes:  # else too few are alive to matter
            self.made = {key: made for key, made in self.made.items() if not made[0].expired()}  # type: ignore[no-untyped-call]
            self.made_bytes = sum(nbytes for _, nbytes in self.made.values())
            self.bytes = max(self.bytes, self.made_bytes)
        return output
