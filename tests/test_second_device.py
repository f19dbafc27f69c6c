"""Mixed devices and host waits, found without a GPU; see pretend_device.py for its limits."""

import sys

import pytest
import torch

from adaptive_opt.engine.calibration import calibrate
from adaptive_opt.engine.network import build_network_task, run_network
from adaptive_opt.engine.optimizers import build_optimizer
from adaptive_opt.engine.rahimi_recht import run_rahimi_recht
from adaptive_opt.engine.snapshots import read_snapshots
from adaptive_opt.engine.surroundings import network_surface
from adaptive_opt.engine.trials import TrialPlan, train_network_trials, train_trials
from adaptive_opt.optim import SADH, SSDH, SSVP, Sophia, curvature_state, sampled_cross_entropy
from adaptive_opt.parameters import CalibrationParameters, TaskParameters, resolve_arm
from tests.engine import test_curvature as curvature
from tests.engine import test_trace as trace
from tests.engine.networks import ARMS, images, task_parameters, text, training_parameters
from tests.engine.test_run import CONFIGURATIONS, FUNCTION
from tests.optim.problems import CASES, ensemble_parameters
from tests.pretend_device import DEVICE, PretendDevice
from tests.test_gpu import same_probes  # noqa: F401

MEMBERS = 2


@pytest.fixture
def device():
    with PretendDevice() as mode:
        yield mode


@pytest.fixture
def engine_on_device(monkeypatch):
    """Make the engine train on the simulated device, with any parameters."""
    for name, module in list(sys.modules.items()):
        if name.startswith("adaptive_opt.engine.") and hasattr(module, "resolve_device"):
            monkeypatch.setattr(module, "resolve_device", lambda _: DEVICE)


# The simulated device itself.


@pytest.mark.parametrize(
    ("wait", "reason"),
    [
        (lambda t: t.sum().item(), "a value is read"),
        (lambda t: bool(t.sum() > 0), "a value is read"),
        (lambda t: t.tolist(), "copied"),
        (lambda t: t.cpu(), "copied"),
        (lambda t: t.nonzero(), "depends on values"),
        (lambda t: t[t > 0], "depends on values"),
        (lambda t: torch.equal(t, t), "compared"),
        (lambda t: torch.tensor([1.0], device=t.device), "copied"),
        (lambda t: torch.zeros(2).to(t.device), "copied"),
        (lambda t: t.copy_(torch.zeros(3)), "copied"),
        (lambda t: t[torch.tensor([0, 1])], "an index on the host"),
    ],
)
def test_waits_are_recorded(device, wait, reason):
    tensor = torch.ones(3, device=DEVICE)
    assert device.waits == []
    wait(tensor)
    assert reason in device.waits[0].what


@pytest.mark.parametrize(
    "work",
    [
        lambda t: t + torch.zeros(3),
        lambda t: torch.cat([t, torch.zeros(3)]),
        lambda t: torch._foreach_add([t], [torch.zeros(3)]),
        lambda t: torch.nn.functional.linear(t, torch.zeros(2, 3)),
    ],
)
def test_mixed_devices_are_rejected(device, work):
    with pytest.raises(RuntimeError, match="same device"):
        work(torch.ones(3, device=DEVICE))


def test_cpu_generator_is_rejected(device):
    tensor = torch.ones(3, device=DEVICE)
    with pytest.raises(RuntimeError, match="generator"):
        tensor.normal_(generator=torch.Generator())
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, generator=torch.Generator(DEVICE))
    tensor.normal_(generator=torch.Generator(DEVICE).manual_seed(0))


def test_asynchronous_operations_are_not_recorded(device):
    tensor = torch.ones(3, device=DEVICE)
    tensor.mul_(torch.tensor(2.0))[0] = 5
    torch.zeros(3).to(DEVICE, non_blocking=True)
    assert device.waits == []
    assert tensor.tolist() == [5, 2, 2]


# Optimizers.


def step(optimizer, params):
    optimizer.zero_grad()
    value = sum((p**4).reshape(MEMBERS, -1).sum(1) for p in params)
    optimizer.backward(value)
    optimizer.step()


def steps(case, device):
    """Yield optimizer and parameters before each of four steps and at the end.

    Two of the steps update the curvature.
    """
    params = [p.detach().to(device).requires_grad_() for p in ensemble_parameters(MEMBERS)]
    seed = {"seed": list(range(MEMBERS))} if case.second_order else {}
    options = {**case.hyperparameters, "lr": torch.full((MEMBERS,), 0.01), "max_grad_norm": 1.0}
    optimizer = case.make(params, members=MEMBERS, **seed, **options)
    for _ in range(4):
        yield optimizer, params
        step(optimizer, params)
    yield optimizer, params


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_optimizers_do_not_wait_and_equal_the_cpu(device, case):
    *_, (_, expected) = steps(case, torch.device("cpu"))
    made = steps(case, DEVICE)
    optimizer, params = next(made)
    waits = len(device.waits)
    for _ in made:
        optimizer.statistics()
        optimizer.denominators()
    assert device.waits[waits:] == []
    for p, q in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach().cpu(), q.detach())


def network():
    layers = [torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(48, 4))


def model_and_batch():
    torch.manual_seed(0)
    return (
        network().to(DEVICE),
        torch.randn(5, 2, 6, 6, device=DEVICE),
        torch.arange(5, device=DEVICE) % 4,
    )


@pytest.mark.parametrize("cls", [Sophia, SADH, SSDH, SSVP])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"curvature": "gauss_newton"},
        {"hvp": "finite_difference"},
        {"curvature": "permuted"},
        {"probe": "momentum_sign_cumulative"},
        {"max_grad_norm": 1.0, "weight_decay": 0.1},
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_training_a_model_does_not_wait(device, cls, options):
    model, x, y = model_and_batch()
    optimizer = cls(model.parameters(), update_period=2, **options)

    def loss():
        return torch.nn.functional.cross_entropy(model(x), y)

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    for number in range(4):
        if number == 1:
            first = len(device.waits)
        if "hvp" in options:
            optimizer.step(closure)
            continue
        optimizer.zero_grad()
        with optimizer.forward_context():
            logits = model(x)
            value = torch.nn.functional.cross_entropy(logits, y)
        sampled = options.get("curvature") == "gauss_newton"
        optimizer.backward(value, (lambda z=logits: sampled_cross_entropy(z)) if sampled else None)
        optimizer.step()
    assert device.waits[first:] == []
    # Only the first finite difference waits, to check that the batch has not changed.
    found = {w.where[0] if "hvp" not in options else w.where[1] for w in device.waits if w.where}
    assert found == ({"finite_differences.check_same_batch"} if "hvp" in options else set())


def test_state_of_the_device_continues_on_the_cpu(device):
    model, x, y = model_and_batch()
    optimizer = SSDH(model.parameters(), update_period=2, probe="constant")

    def train(model, optimizer, x, y):
        with optimizer.forward_context():
            value = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.backward(value)
        optimizer.step()
        return value.detach().cpu()

    train(model, optimizer, x, y)
    on_host = network()
    on_host.load_state_dict({k: v.cpu() for k, v in model.state_dict().items()})
    other = SSDH(on_host.parameters(), update_period=2, probe="constant")
    other.load_state_dict(optimizer.state_dict())
    assert all(t.device.type == "cpu" for s in other.state.values() for t in s.values())
    for _ in range(3):
        torch.testing.assert_close(
            train(on_host, other, x.cpu(), y.cpu()), train(model, optimizer, x, y),
            rtol=1e-4, atol=1e-4,
        )  # fmt: skip


# Tasks.


@pytest.mark.parametrize("seeds", [(0,), (0, 1)], ids=["one", "two"])
@pytest.mark.parametrize("task", ["resnet18", "transformer"])
def test_network_losses_do_not_wait(device, engine_on_device, task, seeds):
    data = images() if task == "resnet18" else text()
    settings = training_parameters(curvature_share=0.5)
    problem = build_network_task(data, task, seeds, task_parameters(task), settings)
    params = problem.initial_parameters()
    assert {p.device for p in (*params, *problem.buffers.values())} == {DEVICE}
    batches = problem.epoch(0)
    batch = next(batches)
    waits = len(device.waits)
    next(batches)
    loss = problem.loss(params, batch)
    torch.autograd.grad(loss.sum(), params, create_graph=True)
    problem.curvature_loss(params, batch)
    problem.loss_and_gradient(params, batch)
    problem.evaluate(params, "valid")
    problem.evaluate(params, "train")
    assert device.waits[waits:] == []


# The engine and trials of the search.

READS = {"train._flush", "train._measure_end", "train.state_dict", "train.load_state_dict"}
"""Functions that may read values: history every 50 rows, final measurements, checkpoints."""


def check_iterations(device):
    """Check that iterations wait only in :data:`READS`."""
    inside = [w for w in device.waits if "train.iterate" in w.where and not READS & {*w.where}]
    assert inside == []
    assert any(READS & {*w.where} for w in device.waits)  # the names in READS are still valid


@pytest.mark.parametrize("arm", ["adam", "ssdh", "ssvp", "ssdh_permuted", "ssdh_exact", "custom"])
def test_rahimi_recht_iterations_do_not_wait(device, engine_on_device, arm):
    settings = training_parameters(log_every=1, statistics_every=4, hessian_every=10)
    parameters = TaskParameters(epochs=20, seeds=2, target=0.1, batch_size=32)
    found = resolve_arm(arm, CONFIGURATIONS, settings)
    history, _, summary = run_rahimi_recht(
        FUNCTION, task="rr", arm=arm, **found, task_parameters=parameters, training=settings
    )
    assert summary["device"] == str(DEVICE)
    ends = history.groupby("seed")["train_loss"]
    assert (ends.last() < ends.first()).all()
    check_iterations(device)


@pytest.mark.parametrize(
    ("task", "arm", "seeds"),
    [("resnet18", "ssdh", 1), ("resnet18", "adam", 2), ("transformer", "ssvp", 1)],
)
def test_network_iterations_do_not_wait(device, engine_on_device, task, arm, seeds):
    settings = training_parameters(curvature_share=0.5)
    data = images() if task == "resnet18" else text()
    _, weights, summary = run_network(
        data, task=task, arm=arm, **resolve_arm(arm, ARMS, settings), seeds=range(seeds),
        task_parameters=task_parameters(task, epochs=2), training=settings,
    )  # fmt: skip
    assert summary["device"] == str(DEVICE)
    assert {w.device.type for w in weights.values()} == {"cpu"}
    check_iterations(device)


def test_rahimi_recht_trials_do_not_wait(device, engine_on_device):
    settings = training_parameters()
    found = [resolve_arm("ssdh", CONFIGURATIONS, settings)["hyperparameters"] for _ in range(2)]
    found[1] = {**found[1], "lr": 0.05, "rho": 0.2}
    trials = train_trials(
        FUNCTION, task="rr", arm="ssdh", optimizer="adaptive_opt.optim.SSDH", configurations=found,
        task_parameters=TaskParameters(epochs=5, seeds=2, target=0.1, batch_size=32),
        training=settings, plan=TrialPlan(epochs=5, seeds=2, horizon=5),
    )  # fmt: skip
    assert [len(set(t.history["seed"])) for t in trials] == [2, 2]
    check_iterations(device)


def test_network_trials_do_not_wait(device, engine_on_device):
    settings = training_parameters()
    arm = resolve_arm("ssdh", ARMS, settings)
    trials = train_network_trials(
        images(), task="resnet18", arm="ssdh", optimizer=arm["optimizer"],
        configurations=[arm["hyperparameters"]], task_parameters=task_parameters("resnet18"),
        training=settings, plan=TrialPlan(epochs=1, seeds=1, horizon=1), validates=True,
        report=lambda *_: False,
    )  # fmt: skip
    assert len(trials) == 1
    check_iterations(device)


def test_step_costs_are_measured_on_the_device(device, engine_on_device):
    settings = training_parameters()
    table = calibrate(
        images(), task="resnet18", arms={"ssdh": resolve_arm("ssdh", ARMS, settings)},
        task_parameters=task_parameters("resnet18"), training=settings,
        settings=CalibrationParameters(rounds=3, update_periods=1),
    )  # fmt: skip
    assert (table["step"] > 0).all()


@pytest.mark.parametrize("task", ["resnet18", "transformer"])
def test_loss_surfaces_are_computed_on_the_device(device, engine_on_device, task):
    _, tensors = curvature.kept(task, "ssdh", epochs=(3,))
    (snapshot,) = read_snapshots(tensors)
    here = curvature.place(task)
    assert here.problem.device == DEVICE
    assert len(network_surface(here, snapshot, curvature.FEW, "")) == 9


def test_fidelity_is_measured_on_the_device(device, engine_on_device):
    given = trace.arguments("ssdh")
    trajectory = trace.trace_rahimi_recht(trace.FUNCTION, **given)
    assert {t.device.type for t in trajectory.values()} == {"cpu"}
    settings = trace.FidelityParameters(iterations=[0, 9], draws=16, paths=2)
    frame = trace.measure_fidelity(
        trace.FUNCTION, trajectory, task="rr_cond29", settings=settings,
        hyperparameters=given["hyperparameters"], task_parameters=trace.TASK,
    )  # fmt: skip
    assert len(frame) > 0


def test_exact_curvature_on_the_cpu_is_rejected(device):
    """The simulated device also checks tensors that the engine passes to an optimizer."""
    p = torch.ones(2, 3, device=DEVICE, requires_grad=True)
    optimizer = build_optimizer(
        "adaptive_opt.optim.SSDH", {"curvature": "exact", "lr": 0.1}, [p], probe_seeds=[0, 1],
        diagonal_fn=lambda: [torch.ones(2, 3)],
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="same device"):
        step(optimizer, [p])


# The tests on a GPU.


@pytest.mark.usefixtures("same_probes")
def test_the_fixture_of_the_gpu_tests_replaces_the_probes(monkeypatch):
    calls = []
    replaced = curvature_state.draw
    monkeypatch.setattr(curvature_state, "draw", lambda *given: calls.append(1) or replaced(*given))
    weight = torch.ones(3, requires_grad=True)
    optimizer = SSDH([weight])
    optimizer.backward(weight.square().sum())
    assert calls
