"""The optimizers in other packages' training loops: the code of the how-to pages, executed.

Each test compares the trained weights with those of a plain PyTorch loop.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from adaptive_opt.optim import SSDH
from tests.conftest import PROJECT

NOT_INSTALLED = "not installed: pip install '.[frameworks]'"
OPTIONS = {"lr": 0.05, "rho": 0.1, "update_period": 2}
EXACT = {"rtol": 0, "atol": 1e-6}
DIFFERENCES = {"rtol": 0, "atol": 1e-4}


def code(page):
    """The Python blocks of a how-to page."""
    text = (PROJECT / "docs/howto" / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def execute(source, space=None):
    space = {"__name__": "page"} if space is None else space
    exec(compile(source, "page", "exec"), space)  # noqa: S102
    return space


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def start():
    """Data and model as the pages make them."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(64, 4), torch.randn(64, 1))
    return data, nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def plain_loop(*, clip=None, accumulate=1, size=8, epochs=2, **options):
    """Weights after a loop without any framework."""
    data, model = start()
    optimizer = SSDH(model.parameters(), **(OPTIONS | options))
    for _ in range(epochs):
        for i, (x, y) in enumerate(DataLoader(data, batch_size=size)):
            loss = nn.functional.mse_loss(model(x), y) / accumulate
            optimizer.backward(loss)
            if (i + 1) % accumulate == 0:
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
    return weights(model)


def test_the_comparison_sees_a_wrong_curvature():
    """Else equal weights would say little."""
    found = [plain_loop(**changed) for changed in ({}, {"update_period": 3}, {"seed": 1})]
    found += [plain_loop(clip=0.5), plain_loop(accumulate=2), weights(start()[1])]
    assert all((a - b).abs().max() > 10 * DIFFERENCES["atol"] for a, b in pairwise(found))


# Lightning.


@pytest.fixture
def lightning(monkeypatch, tmp_path):
    """The package, with a Trainer on the CPU that prints nothing."""
    pl = pytest.importorskip("pytorch_lightning", reason=NOT_INSTALLED)
    monkeypatch.chdir(tmp_path)
    quiet = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "enable_checkpointing": False}
    monkeypatch.setattr(pl, "Trainer", partial(pl.Trainer, **quiet))
    return pl


@pytest.fixture
def page(lightning):
    """What the first block of the page on Lightning defines, after its training."""
    return execute(code("lightning")[0])


def fit(pl, cls, *, epochs=2, ckpt_path=None, **options):
    data, _ = start()
    torch.manual_seed(0)
    torch.randn(128, 4), torch.randn(64, 1)
    model, (_, network) = cls(), start()
    model.network.load_state_dict(network.state_dict())
    trainer = pl.Trainer(max_epochs=epochs, **options)
    trainer.fit(model, DataLoader(data, batch_size=8), ckpt_path=ckpt_path)
    return model, trainer


def test_lightning_trains_as_a_plain_loop(page):
    torch.testing.assert_close(weights(page["model"]), plain_loop(clip=1.0), **EXACT)
    optimizer = page["trainer"].optimizers[0]
    assert optimizer.hvp_count == 8  # 16 steps, every second one
    assert optimizer.gradient_equivalents == 16 + 2 * 8


def test_lightning_accumulates(lightning, page):
    model, _ = fit(lightning, page["Regression"], accumulate_grad_batches=2)
    torch.testing.assert_close(weights(model), plain_loop(accumulate=2), **EXACT)


def test_lightning_continues_from_a_checkpoint(lightning, page, tmp_path):
    _, trainer = fit(lightning, page["Regression"], epochs=1)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    model, _ = fit(lightning, page["Regression"], ckpt_path=tmp_path / "first.ckpt")
    torch.testing.assert_close(weights(model), plain_loop(), **EXACT)


def test_lightning_with_manual_optimization(lightning, page):
    class Manual(page["Regression"]):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    model, trainer = fit(lightning, Manual)
    torch.testing.assert_close(weights(model), plain_loop(), **EXACT)
    assert trainer.global_step == 16


def test_lightning_with_finite_differences(lightning, page):
    execute(code("lightning")[1], page)
    model, trainer = fit(lightning, page["FiniteDifferences"])
    clipped = plain_loop(max_grad_norm=1.0)
    torch.testing.assert_close(weights(model), clipped, **DIFFERENCES)
    same = plain_loop_of_closures(max_grad_norm=1.0)
    torch.testing.assert_close(weights(model), same, **EXACT)
    assert trainer.optimizers[0].gradient_equivalents == 16 + 8


@pytest.mark.parametrize("way", ["step", "backward"])
def test_lightning_with_manual_finite_differences(lightning, page, way):
    """A step without a closure: Lightning then hands over one that does nothing."""
    execute(code("lightning")[1], page)

    class Manual(page["FiniteDifferences"]):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer, loss = self.optimizers(), super().training_step

            def closure():
                optimizer.zero_grad()
                value = loss(batch, batch_idx)
                self.manual_backward(value)
                return value

            if way == "step":
                optimizer.step(closure)
            else:
                optimizer.zero_grad()
                optimizer.optimizer.backward(lambda: loss(batch, batch_idx))
                optimizer.step()

    model, trainer = fit(lightning, Manual)
    same = plain_loop_of_closures(max_grad_norm=1.0)
    torch.testing.assert_close(weights(model), same, **EXACT)
    assert trainer.global_step == 16
    assert trainer.optimizers[0].gradient_equivalents == 16 + 8


def test_lightning_without_the_method_says_what_to_call(lightning, page):
    class Forgotten(page["Regression"]):
        backward = lightning.LightningModule.backward

    with pytest.raises(RuntimeError, match=r"call optimizer\.backward\(loss\)"):
        fit(lightning, Forgotten)


def plain_loop_of_closures(**options):
    data, model = start()
    optimizer = SSDH(model.parameters(), hvp="finite_difference", **(OPTIONS | options))

    for _ in range(2):
        for x, y in DataLoader(data, batch_size=8):

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
    return weights(model)


# Accelerate.


@pytest.fixture
def accelerate(monkeypatch):
    """The package, with an Accelerator on the CPU; its state is one of the whole process."""
    package = pytest.importorskip("accelerate", reason=NOT_INSTALLED)
    forget = package.state.AcceleratorState._reset_state
    forget(reset_partial_state=True)
    package.state.GradientState._reset_state()
    monkeypatch.setattr(package, "Accelerator", partial(package.Accelerator, cpu=True))
    yield package
    forget(reset_partial_state=True)
    package.state.GradientState._reset_state()


def prepared(accelerate, accumulate=1, **options):
    """What the functions of the page refer to."""
    data, model = start()
    optimizer = SSDH(model.parameters(), **(OPTIONS | options))
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=accumulate)
    loader = DataLoader(data, batch_size=8)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    return {
        "nn": nn,
        "accelerator": accelerator,
        "model": model,
        "optimizer": optimizer,
        "loader": loader,
    }


def test_accelerate_trains_as_a_plain_loop(accelerate):
    space = execute(code("accelerate")[0])
    same = plain_loop(clip=1.0, accumulate=2)
    torch.testing.assert_close(weights(space["model"]), same, **EXACT)
    optimizer = space["optimizer"].optimizer
    assert optimizer.hvp_count == 8  # 8 steps, every second one, of two batches
    assert optimizer.gradient_equivalents == 16 + 2 * 8


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("hvp", ["autograd", "finite_difference"])
def test_accelerate_with_closures(accelerate, hvp, accumulate):
    space = execute(code("accelerate")[1], prepared(accelerate, accumulate, hvp=hvp))
    for _ in range(2):
        for x, y in space["loader"]:
            loss = space["train_step"](x, y)
            assert not loss.requires_grad
    same = plain_loop(clip=1.0, accumulate=accumulate)
    close = EXACT if hvp == "autograd" else DIFFERENCES
    torch.testing.assert_close(weights(space["model"]), same, **close)


def test_accelerate_hands_a_closure_on(accelerate):
    space = prepared(accelerate, hvp="finite_difference")
    model, optimizer = space["model"], space["optimizer"]
    for _ in range(2):
        for x, y in space["loader"]:

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(x), y)
                space["accelerator"].backward(loss)
                return loss

            optimizer.step(closure)
    torch.testing.assert_close(weights(model), plain_loop_of_closures(), **EXACT)


def test_accelerate_continues_from_a_saved_state(accelerate, tmp_path):
    first = prepared(accelerate)
    train = partial(execute, code("accelerate")[1])

    def epoch(space):
        for x, y in space["loader"]:
            train(space)["train_step"](x, y)

    epoch(first)
    first["accelerator"].save_state(tmp_path)
    second = prepared(accelerate)
    second["accelerator"].load_state(tmp_path)
    epoch(second)
    torch.testing.assert_close(weights(second["model"]), plain_loop(clip=1.0), **EXACT)


# Transformers.


@pytest.fixture
def transformers(accelerate, monkeypatch, tmp_path):
    """The package, with training on the CPU that prints nothing."""
    package = pytest.importorskip("transformers", reason=NOT_INSTALLED)
    monkeypatch.chdir(tmp_path)
    quiet = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    monkeypatch.setattr(
        package, "TrainingArguments", partial(package.TrainingArguments, **quiet)
    )
    return package


def small_gpt2(space):
    torch.manual_seed(0)
    torch.randint(16, (32, 8))
    return space["GPT2LMHeadModel"](space["config"]).train()


def train_with(transformers, *, trainer=None, **changed):
    """Run the page's code with other options; its names, and the batches of each training step."""
    source, batches = code("transformers")[0], []
    for old, new in changed.items():
        assert source.count(f'"{old}": ') <= 1
        source = source.replace('"update_period": 2', f'"update_period": 2, "{old}": {new!r}')
    return source, batches


def test_transformers_trains_as_a_plain_loop(transformers):
    for hvp, close in (("autograd", EXACT), ("finite_difference", DIFFERENCES)):
        page, batches = code("transformers")[0], []
        page = page.replace('"update_period": 2', f'"update_period": 2, "hvp": "{hvp}"')
        space = execute(recording(page), {"batches": batches, "__name__": "page"})
