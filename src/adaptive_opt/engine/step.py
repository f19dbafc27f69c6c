"""One training step of an ensemble: gradient, curvature if it is due, update."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from adaptive_opt.optim import EnsembleOptimizer, Memberwise
from adaptive_opt.optim.curvature_estimate import CurvatureEstimation

from .contract import Task

__all__ = ["AnyOptimizer", "training_step"]

AnyOptimizer = EnsembleOptimizer | Memberwise


def training_step(
    task: Task, params: list[Tensor], optimizer: AnyOptimizer, batch: Any, share: float = 1.0
) -> Tensor:
    """Update all members on a batch; refresh the curvature if it is due.

    Args:
        task, params, optimizer: see :func:`.train.train_ensemble`.
        batch: of the task.
        share: fraction of the batch that curvature is computed on.

    Returns:
        The losses before the step, ``[members]``.
    """
    loss = _differentiate(task, params, optimizer, batch, share)
    if isinstance(optimizer, Memberwise) and optimizer.needs_closure:
        optimizer.step(lambda: task.loss_and_gradient(params, batch))
    else:
        optimizer.step()
    return loss


def _differentiate(
    task: Task, params: list[Tensor], optimizer: AnyOptimizer, batch: Any, share: float
) -> Tensor:
    """Compute gradients on a batch, and curvature if it is due; returns the losses."""
    second = optimizer if isinstance(optimizer, CurvatureEstimation) else None
    on_part = second is not None and second.graph_due and share < 1
    graph = (
        optimizer.graph_due
        if isinstance(optimizer, Memberwise)
        else (second is not None and second.hessian_due and not on_part)
    )
    if graph:
        optimizer.zero_grad()
        loss = task.loss(params, batch)
        optimizer.backward(loss)
        return loss.detach()
    if second is not None and second.sampling_due:
        optimizer.zero_grad()
        loss, sampled = task.loss_and_sampled_loss(params, batch, second.label_generators())
        second.backward(loss, sampled, share)
        return loss.detach()
    if second is not None and second.samples_due:
        optimizer.zero_grad()
        loss = task.loss(params, batch)
        second.backward(loss, lambda: task.sample_gradients(params, batch), share)
        return loss.detach()
    loss, grads = task.loss_and_gradient(params, batch)
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    if second is not None and on_part:
        second.estimate_curvature(task.curvature_loss(params, batch), share)
    return loss
