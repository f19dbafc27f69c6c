"""The generic optimizer tests of torch (``TestOptimRenewed``), for every optimizer.

torch ships the optimizer descriptions of its tests but not the tests, so they are written again
here, with ``optimizer.backward(loss)`` instead of ``loss.backward()``.

| test omitted                                      | reason                                    |
|---------------------------------------------------|-------------------------------------------|
| capturable, differentiable, fused                 | not supported; ``test_errors`` checks the |
|                                                   | errors                                    |
| complex parameters, sparse gradients              | not supported; ``test_everywhere.py``     |
|                                                   | checks the errors                         |
| multiple devices, CUDA, large tensors, memory     | need GPUs                                 |
| a ``step`` that is not a tensor                   | groups count steps as ints                |
| ``foreach`` as the default on CUDA only           | it is the default everywhere              |
| LBFGS, Rosenbrock                                 | test single optimizers of torch           |
| a step with gradients not from ``backward``       | a due second-order step needs             |
|                                                   | ``backward``; see ``test_everywhere.py``  |
"""

from __future__ import annotations

import copy
import io
import unittest

import pytest
import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

pytest.importorskip("expecttest", reason="torch.testing needs expecttest")

from torch.testing._internal.common_optimizers import (
    OptimizerErrorEnum,
    TensorTracker,
)

from .torch_suite import CPU, DB, Problem, check_equal, inputs

each = pytest.mark.parametrize("info", DB, ids=lambda i: i.name)
same = unittest.TestCase()
same.assertEqual = lambda a, b, **kwargs: torch.testing.assert_close(a, b, **kwargs)


@each
def test_descriptions_do_not_choose_an_implementation(info):
    for given in info.optim_inputs_func(device=CPU):
        assert not {"foreach", "fused", "differentiable"} & set(given.kwargs)


@each
def test_errors(info):
    for error in info.optim_error_inputs_func(device="cpu", dtype=torch.float32):
        given = error.optimizer_error_input
        assert error.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR
        expect = pytest.warns if issubclass(error.error_type, Warning) else pytest.raises
        with expect(error.error_type, match=error.error_regex):
            info.optim_cls(given.params, **given.kwargs)


@each
@pytest.mark.parametrize("contiguous", [True, False])
def test_goes_in_the_right_direction(info, contiguous):
    for given in inputs(info):
        problem = Problem(contiguous=contiguous)
        before = float(problem.loss().detach())
        problem.train(info.optim_cls(problem.params, **given.kwargs), 20)
        problem.check_direction(before, given.kwargs)


@each
def test_goes_in_the_right_direction_with_schedulers(info):
    for given in inputs(info):
        for constructors in info.scheduler_inputs:
            problem = Problem()
            before = float(problem.loss().detach())
            optimizer = info.optim_cls(problem.params, **given.kwargs)
            problem.train(optimizer, 20, *(make(optimizer) for make in constructors))
            problem.check_direction(before, given.kwargs)


@each
def test_groups_have_their_own_weight_decay_and_learning_rate(info):
    for given in inputs(info):
        foreach = {"foreach": given.kwargs.pop("foreach")}
        limit = given.kwargs.get("max_grad_norm")
        shared = {k: given.kwargs.pop(k) for k in SHARED if k in given.kwargs}
        problem = Problem()
        still = nn.Parameter(torch.randn(2))
        start = still.detach().clone()
        before = float(problem.loss().detach())
        groups = [
            {"params": [problem.weight], "lr": 0.01, **given.kwargs},
            {"params": [problem.bias], "lr": 0.01, **given.kwargs, "weight_decay": 0.0},
            {"params": [still]},
        ]
        optimizer = info.optim_cls(groups, lr=1e-28, **foreach, **shared)
        for _ in range(20):
            optimizer.zero_grad()
            optimizer.backward(problem.loss() + still.square().sum())
            optimizer.step()
        problem.check_direction(before, given.kwargs)
        assert torch.equal(still, start)
        assert limit == optimizer.param_groups[0]["max_grad_norm"]


SHARED = ("max_grad_norm", "probe", "curvature")
"""Options that all groups share."""


@each
def test_tensor_learning_rate_steps_like_a_number(info):
    for given in inputs(info):
        number, tensor = Problem(), Problem()
        kwargs = {**given.kwargs, "lr": float(given.kwargs.get("lr", 1e-3))}
        a = info.optim_cls(number.params, **kwargs)
        b = info.optim_cls(tensor.params, **{**kwargs, "lr": torch.tensor(kwargs["lr"])})
        schedulers = [torch.optim.lr_scheduler.StepLR(o, 3, 0.5) for o in (a, b)]
        number.train(a, 8, schedulers[0])
        tensor.train(b, 8, schedulers[1])
        assert isinstance(b.param_groups[0]["lr"], torch.Tensor)
        for p, q in zip(number.params, tensor.params, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@each
def test_foreach_matches_a_loop(info):
    """Includes a scalar parameter, an empty parameter, and a step without gradients."""
    for given in info.optim_inputs_func(device=CPU):
        tracker = TensorTracker({"rtol": 1e-12, "atol": 1e-12})
        for foreach in (False, True):
            torch.manual_seed(1)
            model = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1), nn.Sigmoid())
            model.double()
            x = torch.arange(1.0, 7.0).double().reshape(3, 2) / 10
            extra = [torch.ones((), dtype=torch.float64), torch.ones(0, dtype=torch.float64)]
            params = [*model.parameters(), *(nn.Parameter(e) for e in extra)]
            optimizer = info.optim_cls(params, foreach=foreach, **copy.deepcopy(given.kwargs))
            for i in range(7):
                optimizer.zero_grad()
                if i != 3:
                    optimizer.backward(model(x).sum() + sum(p.square().sum() for p in params[-2:]))
                optimizer.step()
                for p in params:
                    for tensor in (p, *optimizer.state[p].values()):
                        if foreach:
                            tracker.pop_check_set(tensor, same)
                        else:
                            tracker.add(tensor)
        assert tracker.all_popped()


@each
def test_nothing_happens_without_gradients(info):
    for given in inputs(info):
        params = [torch.randn(2, 3) for _ in range(2)]
        before = [p.clone() for p in params]
        info.optim_cls(params, **given.kwargs).step(lambda: torch.tensor([1.0]))
        assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))


@each
def test_nothing_happens_with_zero_gradients(info):
    for given in inputs(info):
        if given.kwargs.get("weight_decay", 0) != 0:
            continue
        p = nn.Parameter(torch.randn(5, 1))
        before = p.detach().clone()
        optimizer = info.optim_cls([p], **given.kwargs)
        optimizer.backward((p * 0).sum())
        optimizer.step()
        assert torch.equal(p, before)


@each
def test_step_does_not_change_gradients(info):
    """Except with ``max_grad_norm``, which clips them in place like ``clip_grad_norm_``."""
    for given in inputs(info):
        if "max_grad_norm" in given.kwargs:
            continue
        problem = Problem()
        optimizer = info.optim_cls(problem.params, **given.kwargs)
        for _ in range(4):
            optimizer.zero_grad()
            optimizer.backward(problem.loss())
            versions = [p.grad._version for p in problem.params]
            optimizer.step()
            assert [p.grad._version for p in problem.params] == versions


@each
def test_repr_contains_the_name(info):
    for given in inputs(info):
        assert info.name in repr(info.optim_cls(Problem().params, **given.kwargs))


@each
def test_state_dicts_are_deterministic(info):
    """Two optimizers that continue from one state stay equal, and do not change that state."""
    for given in inputs(info):
        problem, again = Problem(), Problem()
        optimizer = info.optim_cls(problem.params, **given.kwargs)
        problem.train(optimizer, 10)
        with torch.no_grad():
            for p, q in zip(again.params, problem.params, strict=True):
                p.copy_(q)
        other = info.optim_cls(again.params, **given.kwargs)
        state = copy.deepcopy(optimizer.state_dict())
        kept = copy.deepcopy(state)
        other.load_state_dict(copy.deepcopy(state))
        for _ in range(10):
            problem.train(optimizer, 1)
            again.train(other, 1)
            for p, q in zip(problem.params, again.params, strict=True):
                assert torch.equal(p, q)
        check_equal(state, kept)
        check_equal(optimizer.state_dict(), other.state_dict())
        other.param_groups.extend(other.param_groups)
        check_equal(
            optimizer.state_dict()["param_groups"][-1], other.state_dict()["param_groups"][-1]
        )


def batch_norm():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(4, 2, 1, stride=2), nn.BatchNorm2d(2))
    return model, torch.rand(1, 4, 16, 16)


def train(model, x, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        optimizer.backward(model(x).sum())
        optimizer.step()


@each
def test_older_states_can_be_loaded(info):
    for given in inputs(info):
        model, x = batch_norm()
        optimizer = info.optim_cls(model.parameters(), **given.kwargs)
        train(model, x, optimizer)
        state = copy.deepcopy(optimizer.state_dict())
        for group in state["param_groups"]:
            for flag in ("maximize", "foreach", "fused", "differentiable", "capturable"):
                group.pop(flag, None)
        optimizer.load_state_dict(state)
        train(model, x, optimizer, 1)


@each
@pytest.mark.parametrize(("saved", "loaded"), [(True, False), (False, True), (True, True)])
def test_states_with_and_without_names_can_be_loaded(info, saved, loaded):
    for given in inputs(info):
        model, x = batch_norm()
        ways = {True: model.named_parameters, False: model.parameters}
        optimizer = info.optim_cls(ways[saved](), **given.kwargs)
        train(model, x, optimizer)
        other = info.optim_cls(ways[loaded](), **given.kwargs)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert ("param_names" in other.param_groups[0]) == (saved or loaded)
        train(model, x, other, 1)


@each
def test_saved_and_loaded_states_are_equal(info):
    for given in inputs(info):
        model, x = batch_norm()
        optimizer = info.optim_cls(model.parameters(), **given.kwargs)
        train(model, x, optimizer)
        state = optimizer.state_dict()
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        check_equal(torch.load(file, weights_only=True), state)


@each
def test_state_of_another_precision_is_cast_to_that_of_the_parameters(info):
    """As torch's test ``cpu_load_state_dict`` does for devices."""
    for given in inputs(info):
        problem, double = Problem(), Problem(dtype=torch.float64)
        optimizer = info.optim_cls(problem.params, **given.kwargs)
        problem.train(optimizer, 3)
        other = info.optim_cls(double.params, **given.kwargs)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        double.train(other, 3)
        tensors = [t for s in other.state.values() for t in s.values()]
        tensors += [v for v in other.param_groups[0].values() if isinstance(v, torch.Tensor)]
        assert {t.dtype for t in tensors} == {torch.float64}


@each
def test_deepcopy_has_all_public_attributes(info):
    for given in inputs(info):
        problem = Problem()
        optimizer = info.optim_cls(problem.params, **given.kwargs)
        problem.train(optimizer, 2)

        def public(o):
            return {name for name in vars(o) if not name.startswith("_")}

        assert public(optimizer) == public(copy.deepcopy(optimizer))
        assert optimizer.state


@each
def test_step_hooks(info):
    problem, calls = Problem(), []
    optimizer = info.optim_cls(problem.params)
    handles = [
        optimizer.register_step_pre_hook(lambda o, a, k: calls.append("before")),
        optimizer.register_step_post_hook(lambda o, a, k: calls.append("after")),
        register_optimizer_step_pre_hook(lambda o, a, k: calls.append("before any")),
        register_optimizer_step_post_hook(lambda o, a, k: calls.append("after any")),
    ]
    problem.train(optimizer, 2)
    for handle in handles:
        handle.remove()
    problem.train(optimizer, 2)
    assert sorted(calls[:2]) == ["before", "before any"]
    assert sorted(calls[2:4]) == ["after", "after any"]
    assert len(calls) == 8


@each
def test_state_dict_hooks(info):
    problem = Problem()
    optimizer = info.optim_cls(problem.params, lr=0.01)
    problem.train(optimizer, 2)
    optimizer.register_state_dict_pre_hook(lambda o: o.param_groups[0].update(marked=1))

    def without_state(_, state):
        assert all(state["param_groups"][0][name] is not None for name in optimizer.extras)
        return {**state, "state": {}}

    optimizer.register_state_dict_post_hook(lambda o, s: s["state"].clear())
    handle = optimizer.register_state_dict_post_hook(without_state, prepend=True)
    found = optimizer.state_dict()
    assert found["state"] == {}
    assert found["param_groups"][0]["marked"] == 1
    handle.remove()


@each
def test_load_state_dict_hooks(info):
    problem = Problem()
    optimizer = info.optim_cls(problem.params, lr=0.01)
    problem.train(optimizer, 2)
    state, calls = copy.deepcopy(optimizer.state_dict()), []

    def other_rate(o, state):
        calls.append("second")
        groups = [{**g, "lr": 0.02} for g in state["param_groups"]]
        return {**state, "param_groups": groups}

    def after(o):
        calls.append(o.gradient_equivalents)

    optimizer.register_load_state_dict_pre_hook(other_rate)
    optimizer.register_load_state_dict_pre_hook(lambda o, s: calls.append("first"), prepend=True)
    optimizer.register_load_state_dict_post_hook(after)
    problem.train(optimizer, 3)
    optimizer.load_state_dict(state)
    assert calls == ["first", "second", optimizer.gradient_equivalents]
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert state["param_groups"][0]["lr"] == 0.01


@each
def test_default_dtype_has_no_effect(info):
    """The state has the type of the parameters, not the default type."""
    torch.set_default_dtype(torch.float64)
    try:
        for given in inputs(info):
            problem = Problem()
            problem.train(info.optim_cls(problem.params, **given.kwargs), 3)
            assert {p.dtype for p in problem.params} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)
