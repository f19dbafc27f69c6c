r"""The Hessian and the generalised Gauss–Newton matrix of a network's loss, as linear operators.

For the mean loss over N targets of given batches,

    L(θ) = (1/N) Σ_n ℓ(f_θ(x_n), y_n),    H = ∇²L,    G = (1/N) Σ_n J_nᵀ (∇²_f ℓ) J_n,

with the network in evaluation mode: batch normalisation uses running statistics, and dropout is
off. Batches are split into micro-batches to limit memory.

The operators are those of curvlinops, except that the Hessian product differentiates the gradient
backward. curvlinops differentiates it forward, which torch 2.14 does incorrectly for the weights
of layer normalisation (the matrix is not symmetric). A vector ``[n]`` holds all parameters in the
order of ``module.parameters()``.

Source: Pearlmutter, *Fast Exact Multiplication by the Hessian* (1994); Schraudolph, *Fast
Curvature Matrix-Vector Products* (2002); Dangel et al., *Position: Curvature Matrices Should Be
Democratized via Linear Operators* (2025), the library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from curvlinops import GGNLinearOperator, HessianLinearOperator
from curvlinops._torch_base import PyTorchLinearOperator
from torch import Tensor, nn

from adaptive_opt.errors import StudyError
from adaptive_opt.optim import FastDoubleBackward

from .arithmetic import differentiable_kernels

__all__ = ["KINDS", "NetworkLoss", "Scaled", "load_weights"]

KINDS = ("hessian", "gauss_newton")

Batch = tuple[Tensor, Tensor]


class _CountedProducts:
    """Mixin that selects differentiable kernels and reports every product to ``told``."""

    told: Callable[[int], Any] = staticmethod(lambda _: None)

    def _matmat(self, columns: list[Tensor]) -> list[Tensor]:
        parent: Any = super()
        with differentiable_kernels():
            product: list[Tensor] = parent._matmat(columns)
        self.told(columns[0].shape[-1])
        return product

    def _get_normalization_factor(self, inputs: Tensor, targets: Tensor) -> float:
        del inputs
        count: int = self._N_data  # type: ignore[attr-defined]
        return len(targets) / count


class _Hessian(_CountedProducts, HessianLinearOperator):
    """Hessian products by reverse-over-reverse; all columns share the gradient's graph."""

    def _matmat_batch(self, X: Tensor, y: Tensor, M: list[Tensor]) -> list[Tensor]:  # noqa: N803
        params = self._params
        with torch.enable_grad(), FastDoubleBackward():
            loss = self._loss_func(self._model_func(X), y)
            grads = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
        # A gradient that depends on no parameter has no graph.
        seen = [i for i, g in enumerate(grads) if g.requires_grad]
        out = [torch.zeros_like(m) for m in M]
        columns = M[0].shape[-1]
        for k in range(columns):
            product = torch.autograd.grad(
                [grads[i] for i in seen],
                params,
                [M[i][..., k] for i in seen],
                retain_graph=k < columns - 1,
                materialize_grads=True,
            )
            for into, part in zip(out, product, strict=True):
                into[..., k] = part
        return out


class _GaussNewton(_CountedProducts, GGNLinearOperator):
    """Gauss–Newton products of curvlinops."""


class Scaled(PyTorchLinearOperator):
    r"""The operator ``S A S`` with a diagonal S.

    With S = P^{−1/2} it is symmetric and similar to P⁻¹A.

    Args:
        operator: A, a symmetric linear operator ``[n, n]``.
        scale: diagonal of S, ``[n]``; zero excludes a coordinate.

    Example:
        >>> from torch.nn import Linear
        >>> loss = NetworkLoss(Linear(1, 2, bias=False), [(torch.ones(1, 1), torch.tensor([0]))])
        >>> half = Scaled(loss.operator("hessian"), torch.full((2,), 0.5))
        >>> v = torch.tensor([1.0, -1.0])
        >>> bool(torch.isclose(4 * (half @ v), loss.operator("hessian") @ v).all())
        True
    """

    SELF_ADJOINT = True

    def __init__(self, operator: Any, scale: Tensor) -> None:
        super().__init__(operator._in_shape, operator._out_shape)
        self._operator = operator
        scale = scale.to(operator.device, operator.dtype)
        parts = scale.split([s.numel() for s in operator._in_shape])
        shapes = operator._in_shape
        self._scale = [p.view(*s, 1) for p, s in zip(parts, shapes, strict=True)]

    def _matmat(self, columns: list[Tensor]) -> list[Tensor]:
        inner = [s * m for s, m in zip(self._scale, columns, strict=True)]
        outer = self._operator._matmat(inner)
        return [s * m for s, m in zip(self._scale, outer, strict=True)]

    @property
    def device(self) -> torch.device:
        """Device of the products."""
        found: torch.device = self._operator.device
        return found

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the products."""
        found: torch.dtype = self._operator.dtype
        return found


class _Logits(nn.Module):
    """A network with its logits flattened to one row for each target."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(inputs)
        return logits.flatten(0, -2)


class NetworkLoss:
    """Mean loss of a network over given batches, as a function of all its parameters.

    Args:
        network: network with outputs ``[..., d]``; converted to ``dtype`` and set to evaluation
            mode.
        batches: pairs of inputs, and targets ``[..., d]`` or classes ``[...]``.
        dtype: ``torch.float32`` (default) or ``torch.float64``.
        device: device to compute on; default: the CPU.
        micro_batch: number of inputs to compute at a time; None (default): a whole batch.
        criterion: the mean of ℓ; default: cross-entropy.

    Raises:
        StudyError: ``batches`` is empty.

    Example:
        >>> from torch.nn import Linear
        >>> loss = NetworkLoss(Linear(2, 3), [(torch.zeros(4, 2), torch.zeros(4).long())])
        >>> loss.set(torch.zeros(loss.size))
        >>> round(loss.value(), 4), loss.size  # ln 3
        (1.0986, 9)
    """

    def __init__(
        self,
        network: nn.Module,
        batches: Sequence[Batch],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        micro_batch: int | None = None,
        criterion: nn.Module | None = None,
    ) -> None:
        if not batches:
            raise StudyError("there are no batches to compute the curvature on; pass at least one")
        self.network = network.to(device, dtype).eval()
        self._model = _Logits(self.network)
        self._criterion = nn.CrossEntropyLoss() if criterion is None else criterion
        self.parameters = list(self.network.parameters())
        for p in self.parameters:
            p.requires_grad_(True)
        self.size = sum(p.numel() for p in self.parameters)
        self.device, self.dtype = torch.device(device), dtype
        self.data = []
        for inputs, targets in batches:
            size = micro_batch or len(inputs)
            for x, y in zip(inputs.split(size), targets.split(size), strict=True):
                rows = y.flatten(0, -2) if y.is_floating_point() else y.reshape(-1)
                self.data.append((self._to_device(x), self._to_device(rows)))
        self.targets = sum(len(y) for _, y in self.data)

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else tensor.dtype)

    def value(self) -> float:
        """The loss.

        Raises:
            StudyError: it is not finite.
        """
        value = self.value_or_nan()
        if not math.isfinite(value):
            raise StudyError(
                f"the loss over {self.targets:,} targets is {value}, so there is no curvature to "
                "measure; use weights of a run that has not diverged"
            )
        return value

    @torch.no_grad()
    def value_or_nan(self) -> float:
        """The loss, also if it is not finite."""
        with differentiable_kernels():
            losses = [len(y) * self._criterion(self._model(x), y).double() for x, y in self.data]
        return float(torch.stack(losses).sum() / self.targets)

    def operator(self, kind: str, told: Callable[[int], Any] = lambda _: None) -> Any:
        """Linear operator ``[n, n]`` at the network's current parameters; :meth:`set` changes it.

        Args:
            kind: ``hessian`` or ``gauss_newton``.
            told: called with the number of products, after they are computed.
        """
        cls = {"hessian": _Hessian, "gauss_newton": _GaussNewton}[kind]
        made = cls(
            self._model,
            self._criterion,
            self.parameters,
            self.data,
            check_deterministic=False,
            num_data=self.targets,
        )
        made.told = told
        return made

    def get(self) -> Tensor:
        """Copy of all parameters, ``[n]``."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])

    @torch.no_grad()
    def set(self, point: Tensor) -> None:
        """Set all parameters from a vector ``[n]``."""
        parts = point.split([p.numel() for p in self.parameters])
        for p, part in zip(self.parameters, parts, strict=True):
            p.copy_(part.view_as(p))


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy parameters and buffers into a network, by name.

    Args:
        network: network to change.
        weights: its parameters and buffers; buffers that a state dict omits are optional.

    Raises:
        StudyError: the weights are those of another architecture.
    """
    own = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    needed = network.state_dict()
    faults = [f"it has no {name}" for name in needed if name not in weights]
    faults += [f"{name} is not in the network" for name in weights if name not in own]
    faults += [
        f"{name} has shape {list(weights[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if faults:
        more = f" (and {len(faults) - 1} more differences)" if len(faults) > 1 else ""
        raise StudyError(
            "the checkpoint is of another architecture than the task's network: "
            f"{faults[0]}{more}; train again, or use the parameters that it was trained with"
        )
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)
