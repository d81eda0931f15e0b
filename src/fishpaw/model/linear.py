"""Every matrix product of a layer, so that a faster one is one file: x W^T + b."""

from __future__ import annotations

from torch import nn

__all__ = ["Linear"]


class Linear(nn.Linear):
    """x [n in] -> [n out]. Weights start normal with standard deviation `std`, biases at 0 (BERT's way)."""

    def __init__(self, size: int, out: int, *, std: float, bias: bool = True) -> None:
        self.std = std
        super().__init__(size, out, bias=bias)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.normal_(self.weight, std=self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
