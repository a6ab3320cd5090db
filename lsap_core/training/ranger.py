"""Ranger: rectified Adam, Lookahead and gradient centralization in one optimizer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from lsap_core.errors import ConfigError

LOOKAHEAD_EVERY = 6
LOOKAHEAD_RATE = 0.5
RECTIFIED_ABOVE = 5.0
BLOCK_ELEMENTS = 2**24


class Ranger(torch.optim.Optimizer):
    """The optimizer of pSp, e4e and LSAP_E (Wright 2019, on Liu et al. 2020, Zhang et al. 2019, Yong et al. 2020).

    For every tensor with its own step t, counted from its first gradient:

    * centralization: g <- g - mean(g) over all dimensions but the first, where g has more than one;
    * m <- beta1 m + (1 - beta1) g, v <- beta2 v + (1 - beta2) g^2;
    * rho_t = rho - 2 t beta2^t / (1 - beta2^t), rho = 2 / (1 - beta2) - 1, the length of the average in v;
    * rho_t > 5: p <- p - lr r_t m / (sqrt(v) + eps) / (1 - beta1^t) with the rectification r_t of `step_size`;
      else p <- p - lr m / (1 - beta1^t);
    * every 6th step: slow <- slow + (p - slow) / 2, p <- slow; slow begins as p before the first step.

    Libraries count one step for a whole group of parameters. Here it belongs to the tensor, as published: heads that
    join late start with a step of their own. A parameter without gradient is left alone, and so is its state.

    Args:
        parameters: tensors, or groups of them as for any torch optimizer.
        lr: learning rate; pSp, e4e and LSAP_E train with 1e-4.
        betas: decay of the two averages.
        eps: added to the root.
        weight_decay: p <- p - lr weight_decay p before the update.

    Raises:
        ConfigError: a constant lies outside its range.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-5,
        weight_decay: float = 0.0,
    ):
        if not 0 < lr < math.inf:
            raise ConfigError(f"lr is {lr}; wanted a positive number")
        if not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"betas are {betas}; wanted two numbers from 0 to below 1")
        if not (eps > 0 and weight_decay >= 0):
            raise ConfigError(f"eps is {eps}, weight_decay {weight_decay}; wanted a positive number, and at least 0")
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient.

        Args:
            closure: computes loss and gradients anew, as for any torch optimizer.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_step: defaultdict[int, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_step[self._count(parameter)].append(parameter)
            for step, parameters in by_step.items():
                for block in blocks_of(parameters):
                    self._update(block, step, group)
        return loss

    def _count(self, parameter: Tensor) -> int:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["m"] = torch.zeros_like(parameter)
            state["v"] = torch.zeros_like(parameter)
            state["slow"] = parameter.detach().clone()
        state["step"] += 1
        return int(state["step"])

    def _update(self, parameters: list[Tensor], step: int, group: dict[str, Any]) -> None:
        lr, (beta1, beta2), weight_decay = group["lr"], group["betas"], group["weight_decay"]
        m, v, slow = ([self.state[parameter][name] for parameter in parameters] for name in ("m", "v", "slow"))
        gradients = [centralized(parameter.grad) for parameter in parameters if parameter.grad is not None]
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, gradients, gradients, 1 - beta2)
        torch._foreach_mul_(m, beta1)
        torch._foreach_add_(m, gradients, alpha=1 - beta1)
        if weight_decay:
            torch._foreach_add_(parameters, parameters, alpha=-weight_decay * lr)
        size, is_rectified = step_size(step, beta1, beta2)
        if is_rectified:
            denominator = torch._foreach_sqrt(v)
            torch._foreach_add_(denominator, group["eps"])
            torch._foreach_addcdiv_(parameters, m, denominator, -size * lr)
        else:
            torch._foreach_add_(parameters, m, alpha=-size * lr)
        if step % LOOKAHEAD_EVERY == 0:
            torch._foreach_add_(slow, torch._foreach_sub(parameters, slow), alpha=LOOKAHEAD_RATE)
            torch._foreach_copy_(parameters, slow)


def blocks_of(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """The same tensors in their order, in blocks that bound the memory of one update (two copies of a block)."""
    block: list[Tensor] = []
    for parameter in parameters:
        if block and sum(one.numel() for one in block) + parameter.numel() > BLOCK_ELEMENTS:
            yield block
            block = []
        block.append(parameter)
    yield block


def centralized(gradient: Tensor) -> Tensor:
    """The gradient less its mean over all dimensions but the first; vectors pass unchanged (Yong et al. 2020)."""
    if gradient.ndim < 2:
        return gradient
    return gradient - gradient.mean(dim=tuple(range(1, gradient.ndim)), keepdim=True)


def step_size(step: int, beta1: float, beta2: float) -> tuple[float, bool]:
    """What the direction is multiplied by at a step, counted from 1, and whether it is m / sqrt(v) or m alone.

    r_t = sqrt((1 - beta2^t) (rho_t - 4) (rho_t - 2) rho / ((rho - 4) (rho - 2) rho_t)) (Liu et al. 2020, alg. 2),
    with the correction of v in it; both are divided by 1 - beta1^t.
    """
    power = beta2**step
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * power / (1 - power)
    if length <= RECTIFIED_ABOVE:
        return 1 / (1 - beta1**step), False
    rectified = (length - 4) / (longest - 4) * (length - 2) / length * longest / (longest - 2)
    return math.sqrt((1 - power) * rectified) / (1 - beta1**step), True
