"""Path kernel: what each training example added to an output, recorded along gradient descent. arXiv:2012.00152, kexue.fm/archives/8009.

A step theta <- theta - eta sum_i w_i grad l_i moves an output f(x), to first order in eta, by eta sum_i w_i a_i K_t(x, x_i), where
K_t(x, y) = <grad f(x), grad f(y)> and a_i = -dl_i/df(x_i). Summed over all steps f_T(x) = f_0(x) + sum over examples of what each added,
up to an error that is proportional to eta (none where f is linear in theta). a K is -<grad f(x), grad l_i>, which is what is computed.
The sum holds for one training: contributions of models that were trained apart don't add up, because theta(t) differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from fishpaw import checks
from fishpaw.errors import ConfigError, DataError
from fishpaw.optim.derive import describe

__all__ = ["Contributions", "Path", "descend", "kernel", "slopes"]

Read = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Contributions:
    """each [m c n]: what each of n training examples added to output c of the watched input m. start, end [m c]: the outputs before and
    after training. fp64 on the CPU."""

    each: Tensor
    start: Tensor
    end: Tensor

    @property
    def error(self) -> Tensor:
        """[m c]: end - start - the sum of all contributions; what the first order doesn't explain."""
        return self.end - self.start - self.each.sum(-1)

    def ranked(self, watched: int, output: int = 0) -> list[tuple[int, float]]:
        """(example, contribution) of one watched output, the largest first, those that pushed it down last."""
        values = self.each[watched, output]
        return [(index, float(values[index])) for index in torch.argsort(values, descending=True, stable=True).tolist()]


class Path:
    """Takes the steps of plain gradient descent in the optimizer's place, and adds up what each example does to the watched outputs.

    optimizer: torch.optim.SGD without momentum, decay and the like; rates may differ by group and change from step to step. watched: what
    `read` (default: model(watched)) makes outputs [m c] or [m] of; always in evaluation mode. examples: n, how many there are. Each step
    holds m c + b gradients at once, of as many numbers as the model learns: for small models; interpret/tracin is for others.

    Errors: ConfigError that names the setting for any other optimizer: its step is not a sum over examples (momentum and Adam step
    along a preconditioned, delayed kernel).
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, watched: Any, *, examples: int, read: Read | None = None) -> None:
        checks.whole("examples", examples, least=1, most=2**31)
        _refuse(optimizer)
        self.model, self.optimizer, self.watched = model, optimizer, watched
        self._read = read or (lambda network, given: network(given))
        self.start = self._outputs().detach().double().cpu()                           # [m c]
        self._each = torch.zeros(*self.start.shape, examples, dtype=torch.float64)     # [m c n]

    def step(self, losses: Tensor, chosen: Sequence[int] | Tensor) -> None:
        """One step along the mean of losses [b], those of the examples number `chosen` [b], with their graph.

        Errors: DataError where they are not equally many, or an example has a number that it can't have.
        """
        index = torch.as_tensor(chosen).cpu()
        if losses.ndim != 1 or index.shape != losses.shape:
            raise DataError(f"Losses of shape {list(losses.shape)} for {index.numel()} examples.", fix="Give one loss an example, [b].")
        if len(index) == 0 or not 0 <= int(index.min()) <= int(index.max()) < self._each.shape[-1]:
            raise DataError(f"A batch of examples {index.tolist()[:9]}.", fix=f"They are numbered 0 … {self._each.shape[-1] - 1}.")
        outputs = self._outputs()
        pairs = [(p, float(group["lr"])) for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        parameters = [p for p, _ in pairs]
        rates = torch.cat([torch.full((p.numel(),), rate, dtype=losses.dtype, device=losses.device) for p, rate in pairs])       # [P]
        pull = slopes(losses, parameters)                                              # [b P]
        moved = (slopes(outputs.reshape(-1), parameters) * rates) @ pull.mT / -len(index)                                       # [m c b]
        self._each.index_add_(-1, index, moved.double().cpu().view(*self.start.shape, len(index)))
        mean, at = pull.mean(0), 0
        for p in parameters:
            p.grad = mean[at : at + p.numel()].view_as(p).clone()
            at += p.numel()
        self.optimizer.step()

    def contributions(self) -> Contributions:
        """What was added by all steps so far."""
        return Contributions(self._each.clone(), self.start, self._outputs().detach().double().cpu())

    def _outputs(self) -> Tensor:
        training = self.model.training
        self.model.eval()
        try:
            outputs = self._read(self.model, self.watched)
        finally:
            self.model.train(training)
        if outputs.ndim not in (1, 2):
            raise DataError(f"The watched outputs have the shape {list(outputs.shape)}.", fix="Make read give [m c] or [m].")
        return outputs.unsqueeze(-1) if outputs.ndim == 1 else outputs


def descend(
    model: nn.Module, inputs: Tensor, targets: Tensor, watched: Any, *, loss: Callable[[Tensor, Tensor], Tensor], rate: float, steps: int,
    batch_size: int | None = None, seed: int = 0, read: Read | None = None,
) -> Contributions:  # fmt: skip
    """Train `model` in place by gradient descent on (inputs [n …], targets [n …]) and say what each example added to the watched outputs.

    loss(outputs [b …], targets [b …]) -> a loss an example, [b]. rate: eta. batch_size: None: all examples in each step; else batches
    of a new order each epoch, drawn from seed. watched, read: see Path.
    """
    checks.number("rate", rate)
    checks.whole("steps", steps, least=1, most=2**31)
    count = len(inputs)
    size = count if batch_size is None else min(batch_size, count)
    checks.whole("batch_size", size, least=1, most=2**31)
    path = Path(model, SGD([p for p in model.parameters() if p.requires_grad], lr=rate), watched, examples=count, read=read)
    noise, waiting = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if not len(waiting):
            waiting = torch.arange(count) if size == count else torch.randperm(count, generator=noise)
        chosen, waiting = waiting[:size], waiting[size:]
        path.step(loss(model(inputs[chosen]), targets[chosen]), chosen)
    return path.contributions()


def kernel(model: nn.Module, one: Any, other: Any, *, read: Read | None = None) -> Tensor:
    """The tangent kernel <grad f_c(x), grad f_d(y)> [m c n d] over the parameters that learn: x of one (m), y of other (n).

    read: see Path. Of one batch with itself it is a Gram matrix: symmetric and positive semi-definite.
    """
    ask = read or (lambda network, given: network(given))
    parameters = [p for p in model.parameters() if p.requires_grad]
    outputs = [ask(model, given) for given in (one, other)]
    shapes = [tuple(output.shape) if output.ndim == 2 else (*output.shape, 1) for output in outputs]
    first, second = (slopes(output.reshape(-1), parameters) for output in outputs)
    return (first @ second.mT).view(*shapes[0], *shapes[1])                            # [m c n d]


def slopes(values: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The gradients of values [k] by all parameters, one after another: [k P], in one vectorised backward. The graph stays.

    Errors: ConfigError for values that depend on no parameter.
    """
    if not values.requires_grad:
        raise ConfigError("An output or a loss depends on no parameter that learns.", fix="Compute it with gradients, from the model.")
    ways = torch.eye(len(values), dtype=values.dtype, device=values.device)            # [k k]
    found = torch.autograd.grad(values, list(parameters), ways, is_grads_batched=True, allow_unused=True, retain_graph=True)
    pairs = zip(parameters, found, strict=True)
    return torch.cat([p.new_zeros(len(values), p.numel()) if g is None else g.reshape(len(values), -1) for p, g in pairs], 1)


def _refuse(optimizer: Optimizer) -> None:
    fix = "Use torch.optim.SGD(parameters, lr=…): only its step is a sum over examples of their own gradients."
    if type(optimizer) is not SGD:
        raise ConfigError(f"{describe(optimizer)} isn't plain gradient descent: it steps by a preconditioned kernel.", fix=fix)
    for group in optimizer.param_groups:
        for name in ("momentum", "weight_decay", "nesterov", "maximize"):
            if group[name]:
                raise ConfigError(f"SGD has {name}={group[name]}, which the path kernel doesn't know.", fix=fix)
