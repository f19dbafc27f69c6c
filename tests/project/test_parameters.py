"""Faults in the parameters are reported together, with their keys, before the first node."""

from types import SimpleNamespace

import numpy as np
import pytest
from kedro.config import OmegaConfigLoader

from adaptive_opt.errors import StudyError
from adaptive_opt.io.hooks import ValidationHooks
from adaptive_opt.parameters import (
    TrainingParameters,
    find_faults,
    resolve_arm,
    training_parameters,
)
from adaptive_opt.settings import CONFIG_LOADER_ARGS
from adaptive_opt.study import TASKS, arm_names
from tests.conftest import PROJECT

PRUNED = {"pruner": "hyperband", "objective": "valid_loss", "budget": 8, "epochs": 4}
ENVIRONMENTS = ["base", "smoke", "quick", "evening", "paper", "replication"]


def load(env="base"):
    loader = OmegaConfigLoader(str(PROJECT / "conf"), env=env, **CONFIG_LOADER_ARGS)
    return loader["parameters"]


def put(tree, path, value):
    *keys, last = path.split(".")
    for key in keys:
        tree = tree[key]
    if value is ...:
        del tree[last]
    else:
        tree[last] = value


def validate(parameters, env=None, inputs=frozenset({"rr_synthesis.rr_cond29.function"})):
    catalog = SimpleNamespace(load=lambda name: parameters)
    pipeline = SimpleNamespace(inputs=lambda: set(), all_outputs=lambda: set(inputs))
    run_params = {"project_path": str(PROJECT), "env": env}
    ValidationHooks().before_pipeline_run(run_params, pipeline, catalog)


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_committed_parameters_are_sound(env):
    assert find_faults(load(env)) == []
    validate(load(env), env)


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_every_arm_has_a_configuration(env):
    parameters = load(env)
    training = TrainingParameters(**parameters["training"])
    for task in TASKS:
        for arm in arm_names():
            assert resolve_arm(arm, parameters["arms"][task.name], training)["optimizer"]


def test_published_values_are_the_published_ones(reference):
    import json

    published = json.loads((reference / "best_configs.json").read_text(encoding="utf-8"))
    arms = load()["arms"]
    for task in TASKS:
        for arm, values in published[task.name].items():
            assert arms[task.name][arm] == values


def test_environments_differ_only_where_they_say():
    base, replication = load(), load("replication")
    assert replication["tasks"]["rr_cond29"] == {
        **base["tasks"]["rr_cond29"],
        "initialisation": "shared",
    }
    assert replication["arms"]["rr_cond29"]["ssdh"]["probe"] == "constant"
    assert replication["training"]["schedule"] == "cosine_by_epoch"


def test_ladder_arms_take_their_parents_configuration():
    parameters = load("replication")
    training = TrainingParameters(**parameters["training"])
    arm = resolve_arm("ssdh_permuted", parameters["arms"]["rr_cond29"], training)
    parent = resolve_arm("ssdh", parameters["arms"]["rr_cond29"], training)
    assert arm["hyperparameters"] == {**parent["hyperparameters"], "curvature": "permuted"}


SPACES = "tuning.spaces.corrected.rr_cond29"
LR = {"lr": {"low": 0.1, "high": 1.0}}
BEYOND = {"low": 0.5, "high": 1.5, "scale": "linear"}
FAULTS = [
    ("rr_synthesis.rr_cond29.condition", 0.5, "rr_synthesis", "than or equal to 1"),
    ("rr_synthesis.rr_cond29.x_dim", 1, "rr_synthesis", "must be at least 2"),
    ("rr_synthesis.rr_cond29.hidden_dim", 2, "rr_synthesis", "no network can fit"),
    ("rr_synthesis.rr_cond29.layers", 1, "rr_synthesis", "than or equal to 2"),
    ("rr_synthesis.rr_cond29.source", "fil", "rr_synthesis", "singular_values"),
    ("rr_synthesis.rr_cond29.source", "file", "rr_synthesis", "path must name"),
    ("tasks.rr_cond30", {"epochs": 1, "seeds": 1, "target": 1}, "tasks", "mean 'rr_cond29'"),
    ("tasks.rr_cond29.epoch", 3, "tasks", "unknown parameter 'epoch'; did you mean 'epochs'"),
    ("tasks.rr_cond29.loss", "mae", "tasks", "rmse or mse"),
    ("tasks.rr_cond29.seeds", 0, "tasks", "than or equal to 1"),
    ("tasks.rr_cond29", ..., "tasks", "is missing"),
    ("training.log_evry", 3, "training", "did you mean 'log_every'"),
    ("training.device", "gpu", "training", "auto, cpu or cuda"),
    ("trainig", {}, "--params", "unknown parameter 'trainig'; did you mean 'training'"),
    ("arms.rr_cond29.sshd", {"lr": 1.0}, "arms", "unknown arm 'sshd'; did you mean 'ssdh'"),
    ("arms.rr_cond29.ssdh", ..., "arms", "is missing"),
    ("arms.rr_cond29.ssdh.lr", -0.1, "arms", "than or equal to 0, got -0.1"),
    ("arms.rr_cond29.ssdh.lr", ..., "arms", "is missing"),
    ("arms.rr_cond29.ssdh.probe", "rademacherr", "arms", "rademacher"),
    ("arms.rr_cond29.ssdh.beta3", 0.5, "arms", "did you mean 'beta2'"),
    ("arms.rr_cond29.adamw.lr", -1, "arms", "Invalid learning rate: -1"),
    ("arms.rr_cond29.adamw.betas", [2.0, 0.9], "arms", "Invalid beta parameter"),
    ("arms.rr_cond29.adamw.lr", float("inf"), "arms", "must be finite"),
    ("arms.rr_cond29.custom", {"lr": 1.0}, "arms", "needs 'optimizer'"),
    ("arms", 5, "arms", "must be a valid dictionary"),
    ("tasks", 5, "tasks", "must be a valid dictionary"),
    ("tasks.rr_cond29.seeds", True, "tasks", "must be a valid integer"),
    ("tasks.rr_cond29.target", float("inf"), "tasks", "must be a finite number"),
    ("rr_synthesis.rr_cond29.condition", float("inf"), "rr_synthesis", "finite number"),
    ("rr_synthesis.rr_cond29.condition", 2.0, "rr_synthesis", "use source: singular_values"),
    ("rr_synthesis.rr_cond29.seed", 2**70, "rr_synthesis", "less than 9"),
    ("arms.rr_cond29.adamw.eta", 1, "arms", "takes no argument 'eta'; did you mean 'betas'"),
    ("arms.rr_cond29.custom.optimizer", "torch.optim.Nope", "arms", "cannot be imported"),
    ("tuning.tasks.rr_cond29.budget", 0, "tuning", "than or equal to 1, got 0"),
    ("tuning.tasks.rr_cond29.sampler", 'tpf', "tuning", "random, tpe or gp"),
    ("tuning.tasks.rr_cond29.budgett", 3, "tuning", "did you mean 'budget'"),
    ("tuning.tasks.rr_cond29", ..., "tuning", "is missing"),
    ("tuning.tasks.rr_cond29.objective", 'valid_loss', "tuning", "has no validation data"),
    ("tuning.tasks.rr_cond29.pruner", 'hyperband', "tuning", "train as one program"),
    ("tuning.tasks.resnet18", {**PRUNED, "batch": 2}, "tuning", "train one at a time"),
    ("tuning.tasks.resnet18", {**PRUNED, "min_epochs": 99}, "tuning", "must be at most epochs"),
    ("tuning.tasks.resnet18", {**PRUNED, "min_epochs": 3}, "tuning", "must be a multiple of"),
    ("tuning.space", 'corected', "tuning", "no space"),
    ("tuning.sorce", 'search', "tuning", "did you mean 'source'"),
    (f"{SPACES}.first-order.lr.low", 2.0, "tuning", "must be below high"),
    (f"{SPACES}.first-order.lr.low", 0.0, "tuning", "above 0 on a log scale"),
    (f"{SPACES}.first-order.lr.scale", 'ln', "tuning", "log or log_complement"),
    (f"{SPACES}.first-order", {}, "tuning", "is empty"),
    (f"{SPACES}.second-order.beta2", BEYOND, "tuning", "less than 1, got 1.5"),
    (f"{SPACES}.adamw", {"rho": LR["lr"]}, "tuning", "takes no such hyperparameter"),
    (f"{SPACES}.third-order", LR, "tuning", "neither an arm nor a kind"),
    ("tuning.spaces.corrected.rr_cond30", {"first-order": LR}, "tuning", "unknown task"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "file", "message"), FAULTS)
def test_a_fault_is_named_with_file_key_and_remedy(path, value, file, message):
    parameters = load()
    put(parameters, path, value)
    with pytest.raises(StudyError) as error:
        validate(parameters)
    lines = str(error.value).splitlines()
    assert lines[0] == "The parameters have a fault; nothing was run."
    assert len(lines) == 2
    assert (f"conf/base/parameters_{file}.yml" if "--" not in file else file) in lines[1]
    assert path.rpartition(".")[0] in lines[1]
    assert message in lines[1]


def test_all_faults_are_reported_at_once():
    parameters = load()
    for path, value, _, _ in FAULTS[5:8] + FAULTS[11:13]:
        put(parameters, path, value)
    with pytest.raises(StudyError, match="have 4 faults"):
        validate(parameters)


def test_the_environments_file_is_named():
    parameters = load("smoke")
    put(parameters, "tasks.rr_cond29.epochs", -1)
    with pytest.raises(StudyError, match=r"conf/smoke/parameters\.yml: tasks\.rr_cond29\.epochs"):
        validate(parameters, env="smoke")


def test_function_files_are_read_before_anything_is_computed(tmp_path):
    parameters = load()
    parameters["rr_synthesis"]["rr_cond29"] |= {"source": "file", "path": str(tmp_path / "f.npz")}
    with pytest.raises(StudyError, match="does not exist"):
        validate(parameters)
    (tmp_path / "f.npz").write_bytes(b"PK nonsense")
    with pytest.raises(StudyError, match="damaged"):
        validate(parameters)
    np.savez(tmp_path / "f.npz", A=np.eye(3), X=np.ones((5, 3)))
    validate(parameters)


def test_function_files_are_not_needed_by_other_pipelines(tmp_path):
    parameters = load()
    parameters["rr_synthesis"]["rr_cond29"] |= {"source": "file", "path": str(tmp_path / "f.npz")}
    validate(parameters, inputs={"training.rr_cond29.ssdh.history"})


def test_cuda_without_a_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parameters = load()
    parameters["training"]["device"] = "cuda"
    with pytest.raises(StudyError, match="torch sees no GPU"):
        validate(parameters)


def test_placebos_have_no_exact_hessians_where_none_are_asked_for():
    given = {"hessian_every": 50, "hessian_of": "published"}
    every = [
        training_parameters(arm, given).hessian_every for arm in ("adam", "ssdh", "ssdh_exact")
    ]
    assert every == [50, 50, 0]
    assert training_parameters("ssdh_exact", {"hessian_every": 50}).hessian_every == 50
