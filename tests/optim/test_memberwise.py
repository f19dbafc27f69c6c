"""Third-party optimizers train each member of an ensemble as if it were alone."""

import copy

import numpy as np
import pytest
import torch

from adaptive_opt.optim import Memberwise

from .problems import ensemble_parameters, flat, flat_start, loss, parameters, run


class WholeTensor(torch.optim.Optimizer):
    """Normalised gradient descent, which computes on whole tensors like LAMB or Muon."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad / p.grad.norm())


class Heavy(torch.optim.Optimizer):
    """Heavy ball, an optimizer outside torch."""

    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                b = self.state[p].setdefault("b", torch.zeros_like(p))
                p.sub_(group["lr"] * b.mul_(0.9).add_(p.grad))


OPTIMIZERS = [
    (torch.optim.SGD, {"lr": 0.01}),
    (torch.optim.AdamW, {"lr": 0.01}),
    (torch.optim.Adam, {"lr": 0.01, "amsgrad": True}),
    (torch.optim.NAdam, {"lr": 0.01}),
    (torch.optim.RMSprop, {"lr": 0.01}),
    (WholeTensor, {"lr": 0.01}),
    (Heavy, {"lr": 0.01}),
]


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize(("cls", "kwargs"), OPTIMIZERS)
def test_members_train_independently(cls, kwargs, clip):
    params = ensemble_parameters(3)
    run(Memberwise(cls, params, members=3, max_grad_norm=clip, **kwargs), params, 20, 3)
    for i in range(3):
        alone = parameters(flat_start(seed=i))
        optimizer = cls(alone, **kwargs)
        for _ in range(20):
            optimizer.zero_grad()
            loss(alone).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(alone, clip)
            optimizer.step()
        inside = np.concatenate([p[i].detach().numpy().reshape(-1) for p in params])
        np.testing.assert_allclose(inside, flat(alone), rtol=1e-10)


def test_learning_rate_of_groups_applies_to_every_member():
    params = ensemble_parameters(2)
    optimizer = Memberwise(WholeTensor, params, members=2, lr=0.5)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    start = flat(params).copy()
    run(optimizer, params, 1, 2)
    np.testing.assert_array_equal(flat(params), start)


def test_training_continues_from_a_saved_state():
    params = ensemble_parameters(2)
    optimizer = Memberwise(torch.optim.AdamW, params, members=2, lr=0.01)
    run(optimizer, params, 5, 2)
    copied = [p.detach().clone().requires_grad_() for p in params]
    other = Memberwise(torch.optim.AdamW, copied, members=2, lr=0.01)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, params, 5, 2)
    run(other, copied, 5, 2)
    np.testing.assert_array_equal(flat(params), flat(copied))
    assert other.gradient_equivalents == 10


@pytest.mark.parametrize("clip", [None, 0.5])
def test_statistics_contain_the_second_moment_if_there_is_one(clip):
    class Unknown(torch.optim.Adam):
        """Not known as elementwise, so that each member gets its own instance."""

    for cls in (torch.optim.AdamW, Unknown):
        params = ensemble_parameters(3)
        optimizer = Memberwise(cls, params, members=3, max_grad_norm=clip, lr=0.01)
        assert optimizer.statistics() == {}
        run(optimizer, params, 5, 3)
        norms = optimizer.statistics()["second_moment_norm"]
        for i in range(3):
            alone = parameters(flat_start(seed=i))
            single = cls(alone, lr=0.01)
            for _ in range(5):
                single.zero_grad()
                loss(alone).backward()
                if clip:
                    torch.nn.utils.clip_grad_norm_(alone, clip)
                single.step()
            v = np.concatenate([single.state[p]["exp_avg_sq"].reshape(-1) for p in alone])
            assert float(norms[i]) == pytest.approx(np.linalg.norm(v), rel=1e-5)
    for cls in (torch.optim.SGD, Heavy):
        params = ensemble_parameters(3)
        optimizer = Memberwise(cls, params, members=3, lr=0.01)
        run(optimizer, params, 2, 3)
        assert optimizer.statistics() == {}
