"""Define the optimiser Muon: orthogonal updates of convolution kernels and matrices, AdamW for other weights.

Muon replaces the momentum of a weight matrix by the nearest orthogonal matrix. So a step changes all directions of the
matrix by the same amount. (Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks,
https://kellerjordan.github.io/posts/muon/.) The kernel of a convolution is treated as a matrix with one row per
filter. The row contains all weights of the filter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Coefficients of the quintic iteration, from the page above. They do not converge to singular values of exactly 1, but
# reach values between 0.7 and 1.2 in five iterations.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPSILON = 1e-7


class Muon(torch.optim.Optimizer):
    """Update matrices and convolution kernels with Muon, and all other parameters with AdamW.

    AdamW updates parameters with fewer than two axes (biases, normalisation), kernels with a single filter or a single
    weight per filter, and depthwise kernels.

    Muon and AdamW use the same learning rate. An update of Muon is scaled to a root mean square of 1, like the first
    updates of AdamW. So a learning rate that suits AdamW in a short training suits Muon too. Liu et al. instead scale
    an update to 0.2, the root mean square of AdamW's updates in long trainings (2025, Muon is Scalable for LLM
    Training, https://arxiv.org/abs/2502.16982).

    Args:
        params: parameters of the network, or parameter groups.
        lr: learning rate.
        weight_decay: decoupled weight decay.
        momentum: momentum of Muon (Nesterov).
        betas: decay rates of AdamW's moving averages.
        eps: constant that AdamW adds to the denominator.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> optimizer = Muon(nn.Conv2d(3, 8, 3).parameters(), lr=2e-3)
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 2e-3,
        weight_decay: float = 1e-4,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("eps", eps)):
            if value < 0:
                raise ValueError(f"{name}: found {value}, expected 0 or more")
        for name, value in (("momentum", momentum), ("betas[0]", betas[0]), ("betas[1]", betas[1])):
            if not 0 <= value < 1:
                raise ValueError(f"{name}: found {value}, expected a number from 0 to below 1")
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient.

        Args:
            closure: function that computes the loss and the gradients again. If it is given, it is called before the
                update.

        Returns:
            The loss that `closure` returned, or None without `closure`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = self._muon(parameter, group) if uses_muon(parameter) else self._adam(parameter, group)
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
        return loss

    def _muon(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        average = state["momentum"].lerp_(grad, 1.0 - group["momentum"])
        matrix = grad.lerp(average, group["momentum"]).flatten(1)
        scale = math.sqrt(max(matrix.shape))  # the root mean square of an orthogonal matrix is 1 / this
        return orthogonalize(matrix).mul_(scale).view_as(parameter)

    def _adam(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        if not state:
            state["step"] = 0
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        first, second = group["betas"]
        state["mean"].lerp_(grad, 1.0 - first)
        state["square"].lerp_(grad.square(), 1.0 - second)
        deviation = (state["square"] / (1.0 - second ** state["step"])).sqrt_().add_(group["eps"])
        mean: Tensor = state["mean"] / (1.0 - first ** state["step"])
        return mean.div_(deviation)


def uses_muon(parameter: Tensor) -> bool:
    """Return whether the class `Muon` updates this parameter as a matrix; if False, AdamW updates the parameter."""
    if parameter.ndim < 2:
        return False
    rows, columns = parameter.shape[0], parameter[0].numel()
    is_depthwise = parameter.ndim > 2 and parameter.shape[1] == 1
    return min(rows, columns) > 1 and not is_depthwise


def orthogonalize(matrix: Tensor) -> Tensor:
    """Approximate the orthogonal matrix that is nearest to `matrix`, by Newton-Schulz iterations.

    Args:
        matrix: (rows, columns) float.

    Returns:
        A tensor of the same shape. Its singular values are near 1, except where a singular value of `matrix` is near
        0.
    """
    a, b, c = COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=EPSILON)
    # X ← (a + b·G + c·G²)·X with G = X·Xᵀ. All these factors are polynomials of the first G, so they commute, and the
    # iteration needs only the small matrix G. This takes a fraction of the time of iterating X, because kernels of
    # convolutions have many more columns than rows.
    gram = wide @ wide.T
    factor: Tensor | None = None
    for iteration in range(ITERATIONS):
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        factor = polynomial if factor is None else polynomial @ factor
        if iteration + 1 < ITERATIONS:
            gram = polynomial @ gram @ polynomial
    assert factor is not None
    result = factor @ wide
    return result if matrix.shape[0] <= matrix.shape[1] else result.T
