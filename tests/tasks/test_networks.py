"""Network tasks: modules, losses, batches and independence of members."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from adaptive_opt.errors import StudyError
from adaptive_opt.tasks.image_classification import ImageClassification
from adaptive_opt.tasks.images import ImageData
from adaptive_opt.tasks.language_modelling import LanguageModelling
from adaptive_opt.tasks.models import ResNet, TransformerLanguageModel
from adaptive_opt.tasks.networks import Execution
from adaptive_opt.tasks.text import TextData

CPU = torch.device("cpu")


def images(train=20, size=6, channels=3, classes=4):
    g = torch.Generator().manual_seed(0)

    def split(n):
        x = torch.randint(256, (n, channels, size, size), generator=g, dtype=torch.uint8)
        return x, torch.arange(n) % classes

    (x, y), (xv, yv), (xt, yt) = split(train), split(7), split(9)
    return ImageData(
        x, y, xv, yv, xt, yt, torch.full((channels,), 0.4), torch.full((channels,), 0.2)
    )


def text(train=200, words=11):
    g = torch.Generator().manual_seed(0)
    parts = [torch.randint(words, (n,), generator=g) for n in (train, 31, 40)]
    return TextData(*parts, vocabulary_size=words, sha256="00" * 32)


def image_task(members=1, data=None, order=lambda m, e: 100 * m + e, **changes):
    execution = changes.pop("execution", Execution(CPU))
    settings = {
        "widths": [4, 6],
        "blocks": [1, 2],
        "batch_size": 8,
        "crop_padding": 2,
        "flip": True,
    }
    return ImageClassification(
        data or images(),
        **{**settings, **changes},
        weight_seeds=range(members) if isinstance(members, int) else members,
        order_seed=order,
        execution=execution,
    )


def text_task(members=1, data=None, **changes):
    execution = changes.pop("execution", Execution(CPU))
    sizes = {"width": 8, "heads": 2, "feedforward": 6, "layers": 2, "dropout": 0.0}
    sizes |= {"streams": 4, "window": 5}
    return LanguageModelling(
        data or text(),
        **{**sizes, **changes},
        weight_seeds=range(members) if isinstance(members, int) else members,
        execution=execution,
    )


TASKS = [image_task, text_task]


def test_resnet18_equals_torchvision_with_a_stem_for_small_images():
    own, theirs = ResNet(3, 10, [64, 128, 256, 512], [2, 2, 2, 2]), resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    renamed = {
        name.replace("stages.", "layer") if "stages" in name else name: value
        for name, value in own.state_dict().items()
    }
    renamed = {
        f"layer{int(n[5]) + 1}{n[6:]}" if n.startswith("layer") else n: v
        for n, v in renamed.items()
    }
    theirs.load_state_dict(renamed)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(own(x), theirs(x))


def test_transformer_is_causal():
    torch.manual_seed(0)
    net = TransformerLanguageModel(
        9, width=8, heads=2, feedforward=8, layers=2, dropout=0.3, window=6
    ).eval()
    tokens = torch.randint(9, (2, 6))
    changed = tokens.clone()
    changed[:, 4:] = (tokens[:, 4:] + 1) % 9
    before, after = net(tokens), net(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])
    torch.testing.assert_close(net(tokens[:, :3]), before[:, :3])  # shorter than the window


def test_transformer_has_the_published_initialisation_and_size():
    net = TransformerLanguageModel(
        10_000, width=256, heads=4, feedforward=256, layers=4, dropout=0.2, window=35
    )
    for weight in (net.embedding.weight, net.output.weight):
        assert 0.099 < float(weight.detach().abs().max()) <= 0.1
    assert float(net.output.bias.detach().abs().max()) == 0
    layer = 4 * 256 * 257 + 2 * 256 * 257 + 4 * 256
    assert sum(p.numel() for p in net.parameters()) == 2 * 10_000 * 256 + 10_000 + 4 * layer


@pytest.mark.parametrize("make", TASKS)
def test_loss_and_gradient_equal_those_of_the_module(make):
    task = make()
    weights = task.initial_parameters()
    torch.manual_seed(0)
    module = task.build()
    for p, w in zip(module.parameters(), weights, strict=True):
        torch.testing.assert_close(p.detach(), w[0].detach())
    x, y = next(task.epoch(0))
    x, y = (x[0], y[0]) if task.own_batches else (x, y)
    logits = module(x)
    expected = nn.functional.cross_entropy(logits.flatten(0, -2), y.flatten())
    expected.backward()
    loss, grads = task.loss_and_gradient(weights, next(task.epoch(0)))
    torch.testing.assert_close(loss, expected.detach()[None])
    for g, p in zip(grads, module.parameters(), strict=True):
        torch.testing.assert_close(g[0], p.grad, rtol=1e-4, atol=1e-6)
    for name, b in module.named_buffers():
        torch.testing.assert_close(task.buffers[name][0], b)
    again = task.loss(weights, next(task.epoch(0)))
    torch.testing.assert_close(again.detach(), loss)
    if make is image_task:
        share = (logits.argmax(-1) == y).float().mean()
        torch.testing.assert_close(task.batch_metrics["accuracy"], share[None])


@pytest.mark.parametrize("make", TASKS)
@pytest.mark.parametrize("twice", [False, True])
def test_members_are_independent(make, twice):
    """Loss, gradient, curvature and buffers of a member are the same in an ensemble and alone."""

    def results(task):
        weights = task.initial_parameters()
        for batch in list(task.epoch(1))[:2]:
            loss = task.loss(weights, batch)
            grads = torch.autograd.grad(loss.sum(), weights, create_graph=twice)
            if twice:
                grads = torch.autograd.grad(grads, weights, [torch.ones_like(g) for g in grads])
        return [loss.detach(), *(g.detach() for g in grads), *task.buffers.values()]

    together = results(make([5, 6, 7]))
    for i, seed in enumerate((5, 6, 7)):
        orders = {"order": lambda _, e, i=i: 100 * i + e} if make is image_task else {}
        alone = results(make([seed], **orders))
        for a, b in zip(together, alone, strict=True):
            scale = float(b.abs().max()) if b.numel() else 0.0
            torch.testing.assert_close(a[i], b[0], rtol=1e-3, atol=1e-4 * scale + 1e-6)


@pytest.mark.parametrize("make", TASKS)
def test_epochs_repeat_and_can_start_at_any_batch(make):
    task = make(2)
    whole = list(task.epoch(3))
    assert len(whole) == task.batches_per_epoch
    for start in range(len(whole)):
        rest = list(task.epoch(3, start))
        assert len(rest) == len(whole) - start
        for a, b in zip(rest, whole[start:], strict=True):
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1])


def test_an_epoch_has_every_image_once_shifted_and_mirrored():
    data = images()
    task = image_task(2, data)
    seen, offsets, mirrors = [], set(), set()
    for x, y in task.epoch(0):
        raw = (x * 0.2 + 0.4) * 255  # undo the normalisation
        for m in range(2):
            for image, label in zip(raw[m], y[m], strict=True):
                index, dy, dx, mirror = find(image, data)
                assert int(label) == int(data.y_train[index])
                seen.append((m, index))
                offsets.add((dy, dx))
                mirrors.add(mirror)
    assert sorted(seen) == [(m, i) for m in range(2) for i in range(20)]
    assert mirrors == {False, True}
    assert len(offsets) > 10
    assert {d for pair in offsets for d in pair} <= set(range(5))


def find(image, data):
    """Index, shift and mirroring of an augmented image, by trying all of them."""
    padded = nn.functional.pad(data.x_train.float(), (2, 2, 2, 2))
    for index in range(len(padded)):
        for dy in range(5):
            for dx in range(5):
                crop = padded[index, :, dy : dy + 6, dx : dx + 6]
                for mirror in (False, True):
                    if torch.allclose(crop.flip(-1) if mirror else crop, image, atol=1e-2):
                        return index, dy, dx, mirror
    raise AssertionError("no augmented image matches")


def test_orders_differ_between_epochs_and_members():
    task = image_task(2, crop_padding=0, flip=False)
    first, second = (torch.cat([y for _, y in task.epoch(e)], dim=1) for e in (0, 1))
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_images_are_unchanged_without_augmentation():
    data = images()
    task = image_task(data=data, crop_padding=0, flip=False, batch_size=20)
    x, y = next(task.epoch(0))
    pixels = ((x[0] * 0.2 + 0.4) * 255).round().to(torch.uint8)
    for image, label in zip(pixels, y[0], strict=True):
        matches = (data.x_train == image).flatten(1).all(1).nonzero()
        assert int(label) in data.y_train[matches[:, 0]].tolist()


def test_windows_cover_the_streams_and_targets_are_one_token_ahead():
    data = text()
    task = text_task(data=data)
    streams = data.train.view(4, 50)
    x, y = (torch.cat(part, dim=1) for part in zip(*task.epoch(0), strict=True))
    assert torch.equal(x, streams[:, :-1])
    assert torch.equal(y, streams[:, 1:])
    assert [b[0].shape[1] for b in task.epoch(0)] == [5] * 9 + [4]


@pytest.mark.parametrize("make", TASKS)
def test_evaluation_is_the_mean_over_the_whole_split(make):
    task = make()
    weights = task.initial_parameters()
    task.loss_and_gradient(weights, next(task.epoch(0)))  # changes the running statistics
    before = {n: b.clone() for n, b in task.buffers.items()}
    found = task.evaluate(weights, "valid")
    torch.manual_seed(0)
    module = task.build().eval()
    named = {**dict(zip(task.names, weights, strict=True)), **task.buffers}
    module.load_state_dict({n: v[0] for n, v in named.items()}, strict=make is image_task)
    losses, count = 0.0, 0
    for x, y in task.evaluation("valid"):
        logits = module(x).flatten(0, -2)
        loss = nn.functional.cross_entropy(logits, y.flatten(), reduction="sum")
        losses += float(loss.detach())
        count += y.numel()
    assert count == (7 if make is image_task else 30)  # every image; every token but the first
    assert float(found["valid_loss"]) == pytest.approx(losses / count, rel=1e-5)
    if make is text_task:
        assert float(found["valid_perplexity"]) == pytest.approx(np.exp(losses / count), rel=1e-5)
    for name, b in task.buffers.items():
        assert torch.equal(b, before[name])


@pytest.mark.parametrize("make", TASKS)
def test_curvature_on_part_of_a_batch_keeps_buffers_and_metrics(make):
    task = make(2, execution=Execution(CPU, curvature_share=0.5))
    weights = task.initial_parameters()
    batch = next(task.epoch(0))
    task.loss_and_gradient(weights, batch)
    before, metrics = {n: b.clone() for n, b in task.buffers.items()}, dict(task.batch_metrics)
    part = task.part(batch, 0.5)
    assert part[1].numel() * 2 == batch[1].numel()
    found = task.curvature_loss(weights, batch)
    for name, b in task.buffers.items():
        assert torch.equal(b, before[name])
    assert all(torch.equal(task.batch_metrics[k], v) for k, v in metrics.items())
    torch.testing.assert_close(found.detach(), task.loss(weights, part).detach())


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("make", TASKS)
def test_sampled_loss_uses_labels_from_the_model(make, share):
    """The loss is the usual one; a member samples the same labels in an ensemble and alone."""
    execution = Execution(CPU, curvature_share=share)
    together, alone = make([1, 2], execution=execution), make([2], execution=execution)
    batch = next(together.epoch(0))
    single = tuple(t[1:] for t in batch) if alone.own_batches else batch
    before = torch.get_rng_state()
    found = {}
    for task, data, seeds in ((together, batch, (5, 6)), (alone, single, (6,))):
        weights = task.initial_parameters()
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        loss, sampled = task.loss_and_sampled_loss(weights, data, generators)
        plain, _ = make([1, 2] if task is together else [2]).loss_and_gradient(weights, data)
        torch.testing.assert_close(loss.detach(), plain)
        targets = data[1] if share == 1 else task.part(data, share)[1]
        assert sampled.terms == (targets[0] if task.own_batches else targets).numel()
        grads = torch.autograd.grad(sampled.output, weights, sampled.gradient, retain_graph=True)
        found[task] = [sampled.gradient[-1], *(g[-1] for g in grads)]
        assert len(torch.autograd.grad(loss.sum(), weights)) == len(weights)
    for a, b in zip(found[together], found[alone], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert torch.equal(before, torch.get_rng_state())


def test_bf16_is_first_order_only():
    plain, low = image_task(), image_task(execution=Execution(CPU, precision="bf16"))
    weights, batch = plain.initial_parameters(), next(plain.epoch(0))
    (a, ga), (b, gb) = (t.loss_and_gradient(weights, batch) for t in (plain, low))
    assert not torch.equal(a, b)
    torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)
    assert all(g.dtype == torch.float32 for g in gb)
    x, y = (torch.cat([g.flatten() for g in grads]) for grads in (ga, gb))
    assert float(x @ y / x.norm() / y.norm()) > 0.95
    assert torch.equal(plain.loss(weights, batch), low.loss(weights, batch))


def test_channels_last_changes_only_the_memory_format():
    execution = Execution(CPU, channels_last=True)
    plain, last = (image_task(widths=[16, 6], execution=e) for e in (Execution(CPU), execution))
    batch = next(last.epoch(0))
    assert batch[0][0].is_contiguous(memory_format=torch.channels_last)
    weights = last.initial_parameters()
    assert weights[0][0].is_contiguous(memory_format=torch.channels_last)
    (a, ga), (b, gb) = (
        t.loss_and_gradient(t.initial_parameters(), next(t.epoch(0))) for t in (plain, last)
    )
    torch.testing.assert_close(a, b)
    for x, y in zip(ga, gb, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-5)


def test_narrow_networks_ignore_channels_last():
    """On CPUs; see SAFE_WIDTH."""
    narrow = image_task(widths=[15, 16], execution=Execution(CPU, channels_last=True))
    assert not narrow.execution.channels_last
    assert narrow.initial_parameters()[0][0].is_contiguous()


def test_compiled_passes_agree_and_prepare_changes_no_state():
    data = text()
    plain = text_task(data=data, layers=1)
    compiled = text_task(data=data, layers=1, execution=Execution(CPU, compile=True))
    weights = plain.initial_parameters()
    state = torch.get_rng_state()
    compiled.prepare(weights)
    assert torch.equal(state, torch.get_rng_state())
    compiled.evaluate(weights, "valid")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for batch in list(plain.epoch(0))[-2:]:  # a full and a short window
        (a, ga), (b, gb) = (t.loss_and_gradient(weights, batch) for t in (plain, compiled))
        torch.testing.assert_close(a, b)
        for x, y in zip(ga, gb, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-5)
    assert (
        torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    )  # no compilation after prepare


def test_dropout_differs_between_members_and_steps():
    task = text_task([3, 3], dropout=0.5)
    weights, batch = task.initial_parameters(), next(task.epoch(0))
    torch.manual_seed(0)
    first, second = (task.loss_and_gradient(weights, batch)[0] for _ in range(2))
    assert first[0] != first[1]
    assert first[0] != second[0]
    evaluated = task.evaluate(weights, "test")["test_loss"]
    assert float(evaluated[0]) == pytest.approx(float(evaluated[1]))


@pytest.mark.parametrize(
    ("lengths", "words"),
    [((23, 31, 40), "training text has 23 tokens"), ((200, 1, 40), "validation text has 1")],
)
def test_short_texts_are_refused(lengths, words):
    parts = [torch.zeros(n, dtype=torch.int64) for n in lengths]
    data = TextData(*parts, vocabulary_size=11, sha256="00" * 32)
    with pytest.raises(StudyError, match=words):
        text_task(data=data)


@pytest.mark.parametrize("length", [2, 5, 6, 7])
def test_held_out_text_may_be_shorter_than_a_window(length):
    data = text()
    data = TextData(data.train, data.valid[:length], data.test, vocabulary_size=11, sha256="00")
    task = text_task(data=data)
    assert sum(y.numel() for _, y in task.evaluation("valid")) == length - 1
    assert np.isfinite(float(task.evaluate(task.initial_parameters(), "valid")["valid_loss"]))


@pytest.mark.parametrize(("size", "batches"), [(19, [19, 1]), (10, [10, 10]), (9, [9, 9, 2])])
def test_a_single_last_image_joins_the_batch_before(size, batches):
    """Batch normalisation needs more than one image."""
    task = image_task(batch_size=size)
    found = [y.shape[1] for _, y in task.epoch(0)]
    assert found == ([20] if batches == [19, 1] else batches)
    assert task.batches_per_epoch == len(found)
    assert task.part(next(task.epoch(0)), 0.01)[1].shape[1] == 2


def test_curvature_is_fp32_if_first_order_passes_are_tf32(monkeypatch):
    seen = []
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    task = image_task(execution=Execution(CPU, precision="tf32", curvature_share=0.5))
    inner = task._member_loss

    def spy(*args):
        seen.append([b.fp32_precision for b in backends])
        return inner(*args)

    monkeypatch.setattr(task, "_member_loss", spy)
    before = [b.fp32_precision for b in backends]
    weights, batch = task.initial_parameters(), next(task.epoch(0))
    task.loss_and_gradient(weights, batch)
    task.loss(weights, batch)
    task.curvature_loss(weights, batch)
    assert seen == [["tf32"] * 2, ["ieee"] * 2, ["ieee"] * 2]
    assert [b.fp32_precision for b in backends] == before


def test_curvature_keeps_the_random_state_of_dropout():
    task = text_task(dropout=0.5, execution=Execution(CPU, curvature_share=0.5))
    weights, batch = task.initial_parameters(), next(task.epoch(0))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b = task.curvature_loss(weights, batch), task.curvature_loss(weights, batch)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(a, b)
    torch.rand(1)
    assert not torch.equal(a, task.curvature_loss(weights, batch))


def test_different_numbers_of_widths_and_blocks_are_refused():
    with pytest.raises(ValueError, match="2 widths but 1"):
        ResNet(1, 2, [4, 8], [1])


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_sample_gradients_of_text(share):
    execution = Execution(CPU, curvature_share=share)
    task = text_task(members=2, execution=execution)
    weights = task.initial_parameters()
    batch = next(task.epoch(0))
    found = task.sample_gradients(weights, batch)
    part = task.part(batch, share)
    for i in range(2):
        alone = text_task(members=[i], execution=execution)
        own = [w.detach()[i : i + 1].requires_grad_() for w in weights]
        expected = [torch.zeros_like(w) for w in own]
        for x, y in zip(*part, strict=True):
            one = alone.loss(own, (x[None], y[None]))
            for e, g in zip(expected, torch.autograd.grad(one.sum(), own), strict=True):
                e += g**2 / len(part[0])
        for w, e in zip(weights, expected, strict=True):
            torch.testing.assert_close(found[w][i], e[0], rtol=1e-4, atol=1e-8)


def test_sample_gradients_need_a_network_without_batch_normalisation():
    task = image_task()
    with pytest.raises(StudyError, match="batch normalisation"):
        task.sample_gradients(task.initial_parameters(), next(task.epoch(0)))
