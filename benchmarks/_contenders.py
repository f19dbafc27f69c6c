"""Contenders of ``step_overhead.py``: models, optimizers, and how each makes a step."""

from __future__ import annotations

import copy
import gc
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from adaptive_opt.optim import (
    SADH,
    SSDH,
    SSVP,
    SecondOrderOptimizer,
    Sophia,
    sampled_cross_entropy,
)
from adaptive_opt.tasks.models import ResNet, TransformerLanguageModel

try:
    import pytorch_optimizer
except ImportError:
    pytorch_optimizer = None

TASKS = ("resnet18", "transformer")
MODES = ("eager", "compiled", "graphs")
REFERENCE = "AdamW"
PERIOD, SHARE = 10, 0.25
DUE_STEPS_AT_1 = 2
# Too small a rate to change anything, so that all stay at the same point.
COMMON = {"lr": 1e-6, "weight_decay": 1e-2}

# A gradient with a graph refers to its parameter; zero_grad() breaks that cycle.
warnings.filterwarnings("ignore", r"Using backward\(\) with create_graph=True")

Build = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Sizes:
    """Batch sizes in images or streams of text; ``small``: tiny models and inputs."""

    batch: int
    streams: int
    small: bool


class Problem:
    """A model, a batch and their loss."""

    def __init__(self, task: str, sizes: Sizes, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        small = sizes.small
        model: nn.Module
        if task == "resnet18":
            widths = [16, 16] if small else [64, 128, 256, 512]  # narrower: oneDNN #6035
            model = ResNet(3, 10, widths, [1, 1] if small else [2, 2, 2, 2])
            side = 8 if small else 32
            inputs = torch.randn(sizes.batch, 3, side, side)
            self.inputs = inputs.to(device, memory_format=torch.channels_last)
            self.targets = torch.randint(10, (sizes.batch,), device=device)
            self.model = model.to(device, memory_format=torch.channels_last).train()
        else:
            words, window = (50, 8) if small else (10_000, 35)
            model = TransformerLanguageModel(
                words,
                width=16 if small else 256,
                heads=2 if small else 4,
                feedforward=16 if small else 256,
                layers=1 if small else 4,
                dropout=0.2,
                window=window,
            )
            tokens = torch.randint(words, (sizes.streams, window + 1), device=device)
            self.inputs, self.targets = tokens[:, :-1], tokens[:, 1:]
            self.model = model.to(device).train()

    def loss(self, model: nn.Module, share: float = 1.0) -> Tensor:
        """Mean cross-entropy over the first part of the batch."""
        return self.logits_and_loss(model, share)[1]

    def logits_and_loss(self, model: nn.Module, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """The logits, ``[terms, classes]``, too."""
        rows = max(1, round(share * len(self.inputs)))
        logits = model(self.inputs[:rows])
        flat = logits.reshape(-1, logits.shape[-1])
        return flat, nn.functional.cross_entropy(flat, self.targets[:rows].reshape(-1))

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, function: Callable[[], Any], times: int = 1) -> float:
        """Return the mean wall time of a call."""
        self.synchronise()
        start = time.perf_counter()
        for _ in range(times):
            function()
        self.synchronise()
        return (time.perf_counter() - start) / times


class Plain(torch.optim.Optimizer):
    """SSDH in its simplest form: tensor by tensor, with the graph at every step."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        super().__init__(params, {**COMMON, "step": 0})

    def backward(self, loss: Tensor) -> None:
        """Gradients, and every tenth time the estimate of the Hessian's diagonal."""
        group = self.param_groups[0]
        params = group["params"]
        grads = torch.autograd.grad(loss, params, create_graph=True)
        if group["step"] % PERIOD == 0:
            probes = [torch.randint_like(p, 2) * 2 - 1 for p in params]
            for p, v, h in zip(
                params, probes, torch.autograd.grad(grads, params, probes), strict=True
            ):
                self.state[p]["estimate"] = v * h
        for p, g in zip(params, grads, strict=True):
            p.grad = g.detach()

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """``θ ← (1 − ηλ) θ − η clip(m / (√D + ε), ρ)``."""
        group = self.param_groups[0]
        for p in group["params"]:
            state = self.state[p]
            if "momentum" not in state:
                state["momentum"], state["curvature"] = torch.zeros_like(p), torch.zeros_like(p)
            m, curvature = state["momentum"], state["curvature"]
            m.lerp_(p.grad, 0.04)
            if "estimate" in state:
                curvature.lerp_(state.pop("estimate") ** 2, 0.01)
            update = (m / (curvature.sqrt() + 1e-12)).clamp(-0.01, 0.01)
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * update)
        group["step"] += 1


# How the gradients of a step come about.


def first_order(run: Run) -> None:
    """Run an ordinary backward pass."""
    run.loss().backward()


def whole_batch(run: Run) -> None:
    """Compute gradients as this package does."""
    optimizer = run.second_order
    with optimizer.forward_context():
        loss = run.loss()
    optimizer.backward(loss)


def part_of_batch(run: Run) -> None:
    """The same, with the curvature of the first part of the batch."""
    optimizer = run.second_order
    loss, part = run.loss(), None
    if optimizer.graph_due:
        with optimizer.forward_context():
            part = run.loss(SHARE)
    optimizer.backward(loss, curvature_loss=part, curvature_share=SHARE)


def finite_difference(run: Run) -> None:
    """The same, without second derivatives."""
    run.second_order.backward(run.loss)


def sampled_labels(run: Run) -> None:
    """Sophia-G: one more gradient with labels drawn from the model."""
    logits, loss = run.problem.logits_and_loss(run.current_model)
    optimizer = run.second_order
    sampled = sampled_cross_entropy(logits) if optimizer.curvature_due else None
    del logits
    optimizer.backward(loss, sampled)


def labels_first(run: Run) -> None:
    """Sophia-G with a forward pass of its own for the labels, freed before the loss has its own."""

    def sampled() -> Any:
        return sampled_cross_entropy(run.problem.logits_and_loss(run.current_model)[0])

    run.second_order.backward(run.loss, sampled)


def graph_always(run: Run) -> None:
    """Build the graph of the gradient at every step."""
    # The fused attention kernels have no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        run.loss().backward(create_graph=True)


def graph_when_due(run: Run) -> None:
    """Build the graph of the gradient at the steps that need it."""
    (graph_always if run.due else first_order)(run)


def plain(run: Run) -> None:
    """Step as :class:`Plain` does."""
    with sdpa_kernel(SDPBackend.MATH):
        loss = run.loss()
    assert isinstance(run.optimizer, Plain)
    run.optimizer.backward(loss)


@dataclass(frozen=True)
class Contender:
    """An optimizer and how it is used.

    Attributes:
        name: in tables, figures and ``--contenders``.
        build: parameters to optimizer.
        gradients: see above.
        period: steps from one refresh to the next; 0 where there is no curvature.
        own: whether it is this package's.
        step_alone: whether it stands for its optimizer in the table of the update alone.
    """

    name: str
    build: Build
    gradients: Callable[[Run], None] = first_order
    period: int = 0
    own: bool = False
    step_alone: bool = False

    @property
    def quarter(self) -> bool:
        """Whether it computes curvature on a part of the batch."""
        return self.gradients is part_of_batch

    @property
    def once_differentiated(self) -> bool:
        """Whether its curvature needs no second derivatives."""
        return self.gradients in (finite_difference, sampled_labels, labels_first)

    @property
    def plain_between(self) -> bool:
        """Whether its ordinary steps are those of a first-order method: no graph of the gradient.

        Only these can be compiled or captured.
        """
        return self.period != 1 and self.gradients not in (graph_always, graph_when_due, plain)


def contenders(device: torch.device, mode: str = "eager") -> list[Contender]:
    """List the contenders of a mode, the reference first."""
    cuda = device.type == "cuda"
    capturable = mode == "graphs"
    adamw = _builder(torch.optim.AdamW, foreach=not cuda, fused=cuda, capturable=capturable)
    made = [Contender(REFERENCE, adamw)]
    for cls in (SADH, SSDH, SSVP, Sophia):
        at_10, at_1 = (_builder(cls, update_period=k) for k in (PERIOD, 1))
        name = f"{cls.__name__}-k{PERIOD}"
        made += [
            Contender(name, at_10, whole_batch, PERIOD, own=True, step_alone=True),
            Contender(f"{cls.__name__}-k1", at_1, whole_batch, 1, own=True),
            Contender(f"{name}-quarter", at_10, part_of_batch, PERIOD, own=True),
        ]
    options = {"update_period": PERIOD}
    by_difference = _builder(SSDH, **options, hvp="finite_difference")
    by_labels = _builder(Sophia, **options, curvature="gauss_newton")
    made += [
        Contender(f"SSDH-difference-k{PERIOD}", by_difference, finite_difference, PERIOD, own=True),
        Contender(f"Sophia-G-k{PERIOD}", by_labels, sampled_labels, PERIOD, own=True),
        Contender(f"Sophia-G-apart-k{PERIOD}", by_labels, labels_first, PERIOD, own=True),
    ]
    if pytorch_optimizer is not None:
        for name, k in (("SophiaH", PERIOD), ("AdaHessian", 1), ("AdaHessian", PERIOD)):
            build = _builder(getattr(pytorch_optimizer, name), update_period=k)
            alone = k == PERIOD
            made.append(Contender(f"{name}-k{k}", build, graph_always, k, step_alone=alone))
            if k == PERIOD:
                made.append(Contender(f"{name}-k{k}-due", build, graph_when_due, k))
    made.append(Contender(f"plain-k{PERIOD}", Plain, plain, PERIOD, step_alone=True))
    return made if mode == "eager" else [c for c in made if c.plain_between]


def multi_tensor_adamw(name: str) -> Contender:
    """Return the reference of the update alone, for every device."""
    return Contender(name, _builder(torch.optim.AdamW, foreach=True))


def _builder(cls: Any, **kwargs: Any) -> Build:
    return lambda params: cls(params, **COMMON, **kwargs)


class Run:
    """A contender with its own copy of the model.

    Args:
        contender: how it steps.
        problem: what it trains.
        mode: of the ordinary steps: ``eager``; ``compiled``: the model by ``torch.compile``;
            ``graphs``: the whole step as one CUDA graph. A refresh is always eager.
        backend: of ``torch.compile``.

    Attributes:
        due: whether curvature is due at the coming step.
    """

    def __init__(
        self, contender: Contender, problem: Problem, mode: str = "eager", backend: str = "inductor"
    ) -> None:
        self.contender, self.problem = contender, problem
        self.model = copy.deepcopy(problem.model)
        self.optimizer = contender.build(list(self.model.parameters()))
        self.due = False
        self._compiled = torch.compile(self.model, backend=backend) if mode == "compiled" else None
        self._graph: Any = None
        if mode == "graphs":
            self._capture()

    def _capture(self) -> None:
        """Record an ordinary step as a CUDA graph, after a few to warm up."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.due_step()  # makes the state
            for _ in range(3):
                self.ordinary_step()
        torch.cuda.current_stream().wait_stream(stream)
        self.set_step(1)
        self.optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        self._graph = graph

    @property
    def second_order(self) -> SecondOrderOptimizer:
        """Return the optimizer, which is one of this package."""
        assert isinstance(self.optimizer, SecondOrderOptimizer)
        return self.optimizer

    def loss(self, share: float = 1.0) -> Tensor:
        """Parameters of this copy of the model."""
        return self.problem.loss(self.current_model, share)

    @property
    def current_model(self) -> nn.Module:
        """Return the compiled model if it can be used."""
        return self.model if self._compiled is None or self.due else self._compiled

    def set_step(self, number: int) -> None:
        """Set the step counter, for optimizers whose steps depend on it."""
        k = self.contender.period
        if k:
            self.due = number % k == 0
            for group in self.optimizer.param_groups:
                group["step"] = number

    def step(self) -> None:
        """Make one training step."""
        self.optimizer.zero_grad()
        self.contender.gradients(self)
        self.optimizer.step()

    def due_step(self) -> None:
        """Make a step that refreshes the curvature."""
        if not self.contender.period:  # it has none
            self.ordinary_step()
            return
        self.set_step(0)
        self.step()

    def ordinary_step(self) -> None:
        """Make a step without a refresh."""
        if self._graph is not None:
            self._graph.replay()
            return
        self.set_step(1)
        self.step()

    def turn(self, ordinary: int) -> tuple[float, float | None]:
        """Measure the seconds of a step with and without a refresh."""
        k = self.contender.period
        first = self.problem.seconds(self.due_step, DUE_STEPS_AT_1 if k == 1 else 1)
        rest = None if k == 1 else self.problem.seconds(self.ordinary_step, ordinary)
        # What the gradients hold is not to be alive in the turns of others.
        self.optimizer.zero_grad()
        gc.collect()
        return first, rest

    def state_bytes(self) -> int:
        """Return the size of all tensors of the optimizer's state."""
        states = [t for s in self.optimizer.state.values() for t in s.values()]
        return sum(t.numel() * t.element_size() for t in states if isinstance(t, Tensor))

    def parameter_bytes(self) -> int:
        """Return the size of the parameters."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())
