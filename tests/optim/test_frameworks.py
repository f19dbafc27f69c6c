"""Run the code of the how-to pages for Lightning, Accelerate, Transformers and torchrun.

Each test compares the trained weights with those of a plain PyTorch loop.
"""

from __future__ import annotations

import copy
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
VISIBLE = 1e-3


def text(page):
    return (PROJECT / "docs/howto" / f"{page}.md").read_text(encoding="utf-8")


def code(page):
    """The Python code blocks of a how-to page."""
    return re.findall(r"^```python\n(.*?)^```", text(page), re.M | re.S)


def execute(source, space=None):
    space = {"__name__": "page"} if space is None else space
    exec(compile(source, "page", "exec"), space)  # noqa: S102
    return space


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def start():
    """The same data and model as on the pages."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(64, 4), torch.randn(64, 1))
    return data, nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def plain_loop(*, clip=None, accumulate=1, size=8, epochs=2, **options):
    """Weights after training without a framework."""
    data, model = start()
    optimizer = SSDH(model.parameters(), **(OPTIONS | options))
    for _ in range(epochs):
        for i, (x, y) in enumerate(DataLoader(data, batch_size=size)):

            def loss(x=x, y=y):
                return nn.functional.mse_loss(model(x), y) / accumulate

            differences = options.get("hvp") == "finite_difference"
            optimizer.backward(loss if differences else loss())
            if (i + 1) % accumulate == 0:
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
    return weights(model)


def test_comparison_detects_wrong_options():
    """The weights differ visibly if an option differs, so comparing weights is a valid test."""
    found = [plain_loop(**changed) for changed in ({}, {"update_period": 3}, {"seed": 1})]
    found += [plain_loop(clip=0.5), plain_loop(accumulate=2), weights(start()[1])]
    assert all((a - b).abs().max() > VISIBLE for a, b in pairwise(found))


# Lightning.


@pytest.fixture
def lightning(monkeypatch, tmp_path):
    """The package, with a Trainer that runs on the CPU and prints nothing."""
    pl = pytest.importorskip("pytorch_lightning", reason=NOT_INSTALLED)
    monkeypatch.chdir(tmp_path)
    quiet = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "enable_checkpointing": False}
    monkeypatch.setattr(pl, "Trainer", partial(pl.Trainer, **quiet))
    return pl


@pytest.fixture
def page(lightning):
    """Names defined by the first code block of the Lightning page, after it has run."""
    return execute(code("lightning")[0])


def fit(pl, cls, *, epochs=2, ckpt_path=None, **options):
    model, (data, network) = cls(), start()
    model.network.load_state_dict(network.state_dict())
    trainer = pl.Trainer(max_epochs=epochs, **options)
    trainer.fit(model, DataLoader(data, batch_size=8), ckpt_path=ckpt_path)
    return model, trainer


def test_lightning_trains_like_a_plain_loop(page):
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
    same = plain_loop_of_closures(max_grad_norm=1.0)
    torch.testing.assert_close(weights(model), same, **EXACT)
    assert trainer.optimizers[0].gradient_equivalents == 16 + 8


@pytest.mark.parametrize("way", ["step", "backward"])
def test_lightning_with_manual_finite_differences(lightning, page, way):
    """For a step without a closure, Lightning passes an empty one."""
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


def test_lightning_without_the_backward_method_raises_a_clear_error(lightning, page):
    class WithoutBackward(page["Regression"]):
        backward = lightning.LightningModule.backward

    with pytest.raises(RuntimeError, match=r"call optimizer\.backward\(loss\)"):
        fit(lightning, WithoutBackward)


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
    """The package, with an Accelerator on the CPU; resets its process-wide state."""
    package = pytest.importorskip("accelerate", reason=NOT_INSTALLED)
    forget = package.state.AcceleratorState._reset_state
    forget(reset_partial_state=True)
    package.state.GradientState._reset_state()
    monkeypatch.setattr(package, "Accelerator", partial(package.Accelerator, cpu=True))
    yield package
    forget(reset_partial_state=True)
    package.state.GradientState._reset_state()


def prepared(accelerate, accumulate=1, **options):
    """The names that the functions on the page use."""
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


def test_accelerate_trains_like_a_plain_loop(accelerate):
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
    same = plain_loop(clip=1.0, accumulate=accumulate, hvp=hvp)
    torch.testing.assert_close(weights(space["model"]), same, **EXACT)


def test_accelerate_passes_a_closure_to_step(accelerate):
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

CLIP = 0.3
NO_DROPOUT = "n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0"


@pytest.fixture
def transformers(accelerate, monkeypatch, tmp_path):
    """The package, set to train on the CPU and print nothing."""
    package = pytest.importorskip("transformers", reason=NOT_INSTALLED)
    monkeypatch.chdir(tmp_path)
    quiet = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    quiet["max_grad_norm"] = CLIP
    monkeypatch.setattr(package, "TrainingArguments", partial(package.TrainingArguments, **quiet))
    return package


def prepared_trainer(**options):
    """Names on the page before training, and the indices of examples in the order of use."""
    source, used = code("transformers")[0], []
    given, train = '"update_period": 2', "trainer.train()\n"
    assert source.count(given) == source.count("n_head=2") == 1
    assert source.endswith(train)
    more = "".join(f', "{name}": {value!r}' for name, value in options.items())
    source = source.replace(given, given + more).replace("n_head=2", NO_DROPOUT)
    space = execute(source.removesuffix(train))

    def read(text, i):
        used.append(i)
        tokens = text.tokens[i]
        labels = tokens.clone()
        labels[0] = -100  # the first token has no prediction, but Trainer may count it
        return {"input_ids": tokens, "labels": labels}

    space["Text"].__getitem__ = read
    return space, used


EPS = 1e-3
"""Larger than the default, because the key bias has zero gradient and curvature up to rounding."""


def plain_loop_of_tokens(model, names, tokens, used, hvp):
    """Weights after steps on two batches of four examples; the loss is the mean over tokens."""
    params = dict(model.named_parameters())
    groups = [{"params": [params[name] for name in group]} for group in names]
    optimizer = SSDH(groups, eps=EPS, hvp=hvp, **OPTIONS)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=5)
    model.train()

    def mean(batch):
        logits = model(input_ids=batch).logits[:, :-1]
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()) / 2

    def own(batch):  # equal to `mean` up to rounding, which finite differences amplify
        items = torch.tensor(2 * 4 * 7)
        return model(input_ids=batch, labels=batch, num_items_in_batch=items).loss

    for step in range(5):
        for i in (8 * step, 8 * step + 4):
            batch = tokens[used[i : i + 4]]
            torch.testing.assert_close(own(batch), mean(batch))
            if hvp == "autograd":
                with optimizer.forward_context():
                    loss = mean(batch)
                optimizer.backward(loss)
            else:
                optimizer.backward(partial(own, batch))
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return weights(model)


@pytest.mark.parametrize("hvp", ["autograd", "finite_difference"])
def test_transformers_trains_like_a_plain_loop(transformers, hvp):
    """Five steps with three refreshes of the curvature."""
    space, used = prepared_trainer(hvp=hvp, eps=EPS)
    model, trainer = copy.deepcopy(space["model"]), space["trainer"]
    before = weights(model)
    result = execute("result = trainer.train()", space)["result"]
    name_of = {id(p): name for name, p in space["model"].named_parameters()}
    optimizer = trainer.optimizer.optimizer
    names = [[name_of[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    same = plain_loop_of_tokens(model, names, space["text"].tokens, used, hvp)
    torch.testing.assert_close(weights(space["model"]), same, **EXACT)
    assert (same - before).abs().max() > VISIBLE
    assert optimizer.hvp_count == 3 * 2
    assert 2 < result.training_loss < 4


def test_transformers_continues_from_a_checkpoint(transformers):
    space, _ = prepared_trainer()
    trainer, once = space["trainer"], copy.deepcopy(space["model"])
    trainer.args.save_strategy, trainer.args.save_steps = "steps", 3
    trainer.train()
    again = space["SecondOrderTrainer"](
        once, trainer.args, train_dataset=space["text"],
        optimizer_cls_and_kwargs=(SSDH, space["options"]),
    )  # fmt: skip
    again.train(resume_from_checkpoint="out/checkpoint-3")
    torch.testing.assert_close(weights(once), weights(space["model"]), **EXACT)


# torchrun.

SAVE = """
torch.save(model.module.state_dict(), f"{dist.get_rank()}.pt")
dist.barrier()
dist.destroy_process_group()
"""


def test_torchrun_trains_like_one_process_on_the_joined_batch(tmp_path):
    (source,) = code("torchrun")
    program, end, rest = source.partition("dist.barrier()")
    assert end
    assert rest.endswith("\ndist.destroy_process_group()\n")
    (tmp_path / "train.py").write_text(program + SAVE, encoding="utf-8")
    (command,) = re.findall(r"^    torchrun (.*)$", text("torchrun"), re.M)
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command.split()],
        cwd=tmp_path, env=environment, check=True, timeout=300,
    )  # fmt: skip
    first, second = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    found = torch.cat([t.flatten() for t in first.values()])
    torch.testing.assert_close(found, plain_loop(size=8), **EXACT)
