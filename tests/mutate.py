"""Change the code in one place at a time; a test must fail for each change.

    python tests/mutate.py [words of a mutation's name]

Works on a copy. Prints the test that fails for each mutation, and exits with 1 if one survives.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).parents[1]
SECOND = "optim/second_order.py"
ESTIMATE = "optim/curvature_estimate.py"
FIDELITY = "curvature/fidelity.py"

# name, file under src/adaptive_opt, text, replacement, tests
MUTATIONS = [
    ("beta1 swapped", SECOND, 'ops.lerp_(m, grads, self._factor(1 - group["betas"][0]', 'ops.lerp_(m, grads, self._factor(group["betas"][0]', "optim"),
    ("no clip", SECOND, 'ops.clip_(update, self._factor(group["rho"], params))', "_ = 0", "optim"),
    ("decay has the wrong sign", ESTIMATE, "1 - lr * decay", "1 + lr * decay", "optim"),
    ("refresh one step late", "optim/curvature_state.py", '% group["update_period"] == 0', '% group["update_period"] == 1', "optim"),
    ("curvature not clipped", ESTIMATE, "self._pending_estimates[p] = c * self._expand(factor, [c])[0]", "self._pending_estimates[p] = c", "optim"),
    ("curvature clipped although it is not to be", ESTIMATE, 'if self.param_groups[0]["clip_curvature"]:', "if True:", "optim"),
    ("momentum probe sees the old momentum", "optim/curvature_state.py", "self.ops.lerp_([m], [grad]", "self.ops.lerp_([m.clone()], [grad]", "optim"),
    ("signs never forgotten", SECOND, "torch._foreach_zero_(sums)", "_ = sums", "optim"),
    ("graph kept", "optim/derivatives.py", "loss.detach_()", "_ = loss", "optim"),
    ("graph at every step", "optim/base.py", "self._summed_loss(loss).backward()", "self._summed_loss(loss).backward(create_graph=True)", "optim"),
    ("probe drawn anew when accumulating", "optim/curvature_state.py", "if all(p in self._probe for p in params):", "if False:", "optim"),
    ("random stream not saved", "optim/curvature_state.py", "if probes is not None:", "if False:", "optim"),
    ("missing estimate ignored", ESTIMATE, "if not self._pending_estimates:", "if False:", "optim"),
    ("hvps not counted", "optim/base.py", "        self.hvp_count += number", "        _ = number", "optim"),
    ("normalisation without its own curvature", "optim/double_backward.py", "(m_qx + scale * s)", "m_qx", "optim/test_double_backward.py"),
    ("cross-entropy without its row sums", "optim/double_backward.py", "of_z.addcmul_(p, -dots)", "of_z.addcmul_(p, dots * 0)", "optim/test_double_backward.py"),
    ("convolution without the weight part", "optim/double_backward.py", "parts.append(_convolution(x, b, None, *ctx.geometry))", "pass", "optim/test_double_backward.py"),
    ("sophia floor is a shift", "optim/rules.py", "return ops.maximum(curvature, eps)", "return ops.add(curvature, eps)", "optim"),
    ("absolute without abs", "optim/rules.py", '"absolute", torch.abs', '"absolute", _identity', "optim"),
    ("squared without square", "optim/rules.py", '"squared", torch.square', '"squared", torch.abs', "optim"),
    ("rademacher off by one", "optim/probes.py", "row.random_(0, 2, generator=stream)", "row.random_(0, 1, generator=stream)", "optim"),
    ("gaussian too narrow", "optim/probes.py", "row.normal_(generator=stream)", "row.normal_(0, 0.9, generator=stream)", "optim"),
    ("members share a stream", "optim/probes.py", "for row, stream in zip(flat, streams, strict=True):", "for row, stream in zip(flat, [streams[0]] * rows, strict=True):", "optim"),
    ("nothing permuted", "optim/sources.py", "torch.randperm(flat.shape[1], generator=g)", "torch.arange(flat.shape[1])", "optim"),
    ("one number a tensor for all", "optim/sources.py", 'if per == "model":', 'if per:', "optim"),
    ("mean for root mean square", "optim/sources.py", "[m.sqrt() for m in means]", "means", "optim"),
    ("norm over all members", "optim/base.py", "return norms", "return norms * 0 + norms.norm()", "optim"),
    ("foreach clip one-sided", "optim/_lists.py", "                torch.clamp_(xi, -r, r)", "                torch.clamp_(xi, max=r)", "optim"),
    ("adam without bias correction", "optim/first_order.py", '/ (1 - beta1**t)', "", "optim"),
    ("foreign gradients unclipped", "optim/memberwise.py", "p.grad.mul_(wide)", "_ = wide", "optim"),
    ("residual term dropped", "curvature/deep_linear.py", "block.addcmul_(", "torch.addcmul(block,", "curvature"),
    ("curvature of the root dropped", "curvature/deep_linear.py", ".sub_((g / root) * g.mT)", "", "curvature"),
    ("diagonal of the root dropped", "curvature/deep_linear.py", "d / (2 * root) - g * g / root", "d / (2 * root)", "curvature"),
    ("no zero tolerance", "curvature/statistics.py", "return n * torch.finfo", "return 0 * torch.finfo", "curvature"),
    ("order of chunks lost", "curvature/statistics.py", "rows = [self._results[i] for i in range(self._submitted)]", "rows = [*self._results.values()][::-1]", "curvature"),
    ("ties in order of their index", FIDELITY, "torch.searchsorted(ordered, values, right=True)", "below + 1", "curvature"),
    ("momentum probe in its own unit", FIDELITY, "return estimate / self._unit", "return estimate", "curvature"),
    ("references not smoothed", FIDELITY, "exact.refresh(diagonal[:, None])", "exact._curvature = None; exact.refresh(diagonal[:, None])", "curvature"),
    ("signs of what was made positive", FIDELITY, "compare(estimated.diagonal_estimate(), reference, signs=diagonal)", "compare(estimated.diagonal_estimate(), reference)", "curvature"),
    ("one column for all", "curvature/operators.py", "[M[i][..., k] for i in seen]", "[M[i][..., 0] for i in seen]", "curvature/test_spectrum.py"),
    ("batches weighed alike", "curvature/operators.py", "return len(targets) / count", "return 1 / len(self._data)", "curvature/test_spectrum.py"),
    ("dropout left on", "curvature/operators.py", ".to(device, dtype).eval()", ".to(device, dtype)", "curvature/test_spectrum.py"),
    ("trace without what is deflated", "curvature/spectrum.py", "Estimate(trace_inside + trace.value", "Estimate(trace.value", "curvature/test_spectrum.py"),
    ("error of a single draw", "curvature/spectrum.py", "array.std(ddof=1) / len(array) ** 0.5", "array.std(ddof=1)", "curvature/test_spectrum.py"),
    ("clipped coordinates take part", "curvature/stability.py", "> radius, 0.0, scale)", "> radius, scale, scale)", "engine/test_curvature.py"),
    ("snapshots lost when resumed", "engine/snapshots.py", "self.tensors = dict(saved)", "_ = saved", "engine/test_snapshots.py"),
    ("momentum of the next step", "engine/trace.py", "        self.close()\n        self._refreshed", "        self._refreshed", "engine/test_trace.py"),
    ("points of the dead kept", "engine/trace.py", "points[at >= end, member] = momentum[at >= end, member] = torch.nan", "_ = end", "engine/test_trace.py"),
    ("refresh after the iteration", "engine/trace.py", "[int(i) for i in after - 1]", "[min(int(i), len(iterations) - 1) for i in after]", "engine/test_trace.py"),
    ("pickle may name anything", "tasks/function_files.py", "if (module, name) not in table:", "if (module, name) not in table:\n            import importlib\n            return getattr(importlib.import_module(module), name)\n        if False:", "tasks"),
    ("tensors larger than their storage", "tasks/function_files.py", "if numbers > storage.size or", "if", "tasks"),
    ("short batch counted as full", "tasks/rahimi_recht.py", "sizes[-1] -= padded - samples", "_ = 0", "tasks"),
    ("members share a batch order", "tasks/rahimi_recht.py", "zip(self._rows, self._orders, strict=True)", "zip(self._rows, [self._orders[0]] * self.members, strict=True)", "tasks"),
    ("condition number off", "tasks/rr_functions.py", "torch.diag(condition**exponents)", "torch.diag(condition**(1.001 * exponents))", "tasks"),
    ("never frozen", "engine/train.py", "self._frozen.append(int(member))", "_ = 0", "engine/test_run.py"),
    ("skipped step kept", "optim/base.py", "super().zero_grad(set_to_none)\n        self._clear_step_state()", "super().zero_grad(set_to_none)", "optim"),
    ("other leaves forgotten", ESTIMATE, "[*own_params, *other_leaves(total, own_params)]", "own_params", "optim"),
    ("stale runs accepted", "pipelines/analysis/nodes.py", "if changed:", "if False:", "project/test_study.py"),
    ("data of a run ignored", "pipelines/analysis/nodes.py", "task, arm, digests[task], parameters,", 'task, arm, trained["data"], parameters,', "project/test_study.py"),
    ("frozen where it diverged", "engine/train.py", "p[member] = kept[member]", "_ = kept", "engine/test_run.py"),
    ("history of the dead kept", "engine/train.py", "self.recorder.blank(", "(lambda *_: None)(", "engine/test_run.py"),
    ("arms not paired", "engine/rahimi_recht.py", 'derive_seed(task, s, "order")', 'derive_seed(task, arm, s, "order")', "engine/test_run.py"),
    ("one seed for all weights", "engine/rahimi_recht.py", 'derive_seed(task, s, "weights")', 'derive_seed(task, 0, "weights")', "engine/test_run.py"),
    ("schedule never reaches its floor", "engine/schedule.py", "round(epochs * batches_per_epoch) - 1)", "round(epochs * batches_per_epoch) + 1)", "engine/test_run.py"),
    ("clock counts nothing", "engine/device.py", "self._total += self._now() - self._since", "self._total += 0", "engine/test_run.py"),
    ("speeds upside down", "evidence/speedup.py", "return Speed(-own, 0)", "return Speed(own, 0)", "evidence/test_speedup.py"),
    ("losses may rise with length", "evidence/speedup.py", "increasing=False", "increasing=True", "evidence/test_speedup.py"),
    ("bound without a run beyond it", "evidence/speedup.py", "return Speed(float(reference.lengths[0]), -1)", "return Speed(0.0, 0)", "evidence/test_speedup.py"),
    ("arms read alone", "evidence/statistics.py", "prior_df = min(PRIOR_DF, max(0.0, most - df))", "prior_df = 0.0", "evidence/test_statistics.py"),
    ("no correction for many arms", "evidence/statistics.py", "* np.arange(len(p), 0, -1)", "* 1", "evidence/test_statistics.py"),
    ("different before equivalent", "evidence/statistics.py", "if p_equivalent <= alpha:", "if p_equivalent <= alpha < p_different:", "evidence"),
    ("prices upside down", "evidence/prices.py", "wide[arm] - wide[reference]", "wide[reference] - wide[arm]", "evidence/test_verdict.py"),
    ("labels of the truth", "optim/gauss_newton.py", "labels = torch.searchsorted(sums, u * sums[:, -1:]).clamp_max(sums.shape[1] - 1)", "labels = part.argmax(-1, keepdim=True)", "optim/test_gauss_newton.py"),
    ("half the noise", "optim/gauss_newton.py", "-(2**0.5)", "-1", "optim/test_gauss_newton.py"),
    ("long differences", "optim/finite_differences.py", "FRACTION = 0.05", "FRACTION = 5.0", "optim/test_everywhere.py"),
    ("never is zero", "evidence/passage.py", "np.inf)", "0.0)", "evidence"),
    ("target must be undercut", "evidence/passage.py", "losses <= target", "losses < target", "evidence"),
    ("running statistics not restored", "tasks/networks.py", 'b.copy_(state["buffers"][name])', "_ = b", "engine/test_checkpoint.py"),
    ("curvature moves the running statistics", "tasks/networks.py", "buffers = {name: b.clone() for", "buffers = {name: b for", "tasks/test_networks.py"),
    ("evaluated in training mode", "tasks/networks.py", "self._module.eval()", "self._module.train()", "tasks/test_networks.py"),
    ("epochs alike", "tasks/image_classification.py", "self._order_seed(member, epoch)", "self._order_seed(member, 0)", "tasks/test_networks.py"),
    ("never mirrored", "tasks/image_classification.py", "0.5 * self._flip", "0.0 * self._flip", "tasks/test_networks.py"),
    ("targets not shifted", "tasks/language_modelling.py", "self._train[:, first + 1 : end + 1]", "self._train[:, first:end]", "tasks/test_networks.py"),
    ("no causal mask", "tasks/models.py", "mask=mask, is_causal=True", "mask=mask * 0, is_causal=False", "tasks/test_networks.py"),
    ("random state not restored", "engine/train.py", 'torch.set_rng_state(state["random"])', "pass", "engine/test_checkpoint.py"),
    ("optimizer not restored", "engine/train.py", 'self.optimizer.load_state_dict(state["optimizer"])', "pass", "engine/test_checkpoint.py"),
    ("epoch begun anew on resuming", "engine/train.py", "task.epoch(t // length, t % length)", "task.epoch(t // length, 0)", "engine/test_checkpoint.py"),
    ("another configuration continued", "engine/checkpoint.py", "if digest != self.digest:", "if False:", "engine/test_checkpoint.py"),
    ("pickles executed", "engine/checkpoint.py", "weights_only=True", "weights_only=False", "engine/test_checkpoint.py"),
    ("gradients not clipped", "engine/network.py", "max_grad_norm=settings.max_grad_norm", "max_grad_norm=None", "engine/test_network.py"),
    ("share of curvature not counted", ESTIMATE, "self._count_products(1, share)", "self._count_products(1)", "optim/test_double_backward.py"),
    ("graph of a foreign optimizer not given", "optim/memberwise.py", "create_graph=self.graph_due", "create_graph=False", "optim/test_needs.py"),
    ("judged in training mode", "optim/memberwise.py", 'self._set_modes("eval")\n        try:', 'self._set_modes("train")\n        try:', "optim/test_needs.py"),
    ("products of a foreign optimizer free", "optim/memberwise.py", "SECOND_DERIVATIVE_COST * max(0, self._backward_passes - 1)", "0", "optim/test_needs.py"),
    ("budget overrun by a race", "search/study.py", "if before + self.cost <= self.budget * (1 + ROUNDING):", "if True:", "search/test_study.py"),
    ("dead worker's trial forgotten", "search/study.py", "for trial_id in sorted(lost):", "for trial_id in ():", "search/test_study.py"),
    ("half a draw kept", "search/study.py", "half_drawn = len(trial.params) < len(self.space)", "half_drawn = False", "search/test_study.py"),
    ("the rest of a batch drawn after it", "search/study.py", "return max([len(trials), *ends]) if ends else", "return len(trials) if ends else", "search/test_study.py"),
    ("a damaged trial believed", "search/study.py", "not _is_intact(trial)", "False", "search/test_study.py"),
    ("a damaged record believed", "io/datasets.py", "if found is None or found != _record_checksum(record):", "if found is None:", "project/test_datasets.py"),
    ("a damaged table believed", "io/datasets.py", "if content[start:end] != _checksum(content[:start] + content[end:]).digest():", "if False:", "project/test_datasets.py"),
    ("damaged tensors believed", "io/datasets.py", "if stored != _tensors_checksum(tensors):", "if False:", "project/test_datasets.py"),
    ("dead worker's trial paid for", "search/study.py", 'if trial.state.name == "FAIL" and result.get("outcome") != "failed":', "if False:", "search/test_study.py"),
    ("workers draw alike", "search/study.py", "self.inner = make(trial.number)", "self.inner = make(0)", "search/test_study.py"),
    ("a trial given away is finished twice", "search/batches.py", ", own.state == TrialState.RUNNING", ",", "search/test_batches.py"),
    ("trials numbered from 0 in each batch", "search/batches.py", "start=first", "start=0", "search/test_batches.py"),
    ("space not part of the study", "search/identity.py", '"space": space.describe(),', '"space": 0,', "search/test_study.py"),
    ("interrupted trials lost", "search/tune.py", "  # Ctrl-C: so that no worker waits for the missing heartbeats\n        shared.release(claimed)", "\n        pass", "search/test_study.py"),
    ("trials mixed up", "engine/trials.py", 'frame.groupby(frame["seed"] // seeds)', 'frame.groupby(frame["seed"] % (len(set(frame["seed"])) // seeds))', "search/test_arm.py"),
    ("never reached is reached at the end", "search/objective.py", "else 1 + short", "else 1.0", "search/test_arm.py"),
    ("curvature free of charge", "engine/optimizers.py", "return iterations + refresh * -(-", "return iterations + 0 * -(-", "search/test_arm.py"),
    ("best of n with replacement", "evidence/tuning.py", "weights[0] = n / total", "weights[0] = 1 - (1 - 1 / total) ** n", "evidence/test_tuning.py"),
    ("Lanczos blocks no trace beyond them", "curvature/block_lanczos.py", "Estimate(inside + trace.value", "Estimate(inside", "curvature/test_block_lanczos.py"),
    ("Lanczos blocks weighed alike", "curvature/block_lanczos.py", "self._start_coefficients.T @ vectors[: len(self._start_coefficients)]", "vectors[: len(self._start_coefficients)]", "curvature/test_block_lanczos.py"),
    ("Lanczos residuals halved", "curvature/block_lanczos.py", "torch.linalg.vector_norm(self._coupling @ last, dim=0)", "torch.linalg.vector_norm(self._coupling @ last / 2, dim=0)", "curvature/test_block_lanczos.py"),
    ("sharpness of the plain Hessian twice", "engine/sharpness.py", 'top = scaled if same', 'top = scaled if True', "engine/test_curvature.py"),
    ("sharpness of a diverged run", "engine/sharpness.py", "if not math.isfinite(value):", "if False:", "engine/test_curvature.py"),
    ("decades rounded", "evidence/rahimi_recht.py", "np.floor(np.log10", "np.round(np.log10", "evidence"),
    ("worst run is best", "evidence/rahimi_recht.py", ".to_numpy().argmin()", ".to_numpy().argmax()", "evidence"),
    ("written in place", "files.py", "write(partial)\n        os", "write(path)\n        os", "project/test_datasets.py"),
    ("soft merge lost", "io/configuration.py", '"merge_strategy": {"parameters": "soft"}', '"merge_strategy": {}', "project/test_parameters.py"),
    ("a stale run looks done", "io/status/grid.py", 'if summary.get("digest") == identity.digest:', "if True:", "project/test_status.py"),
    ("a checkpoint of another run counts", "io/status/grid.py", 'if saved.get("digest") != identity.digest:', "if not saved:", "project/test_status.py"),
    ("results of an earlier run are told", "io/status/outcome.py", "and changed_at(path) >= self._begun", "", "project/test_status.py"),
    ("faults stop at the first", "parameters/faults.py", "return [_fault(model, e, prefix) for e in error", "return [_fault(model, e, prefix) for e in error.errors()[:1]] or [_fault(model, e, prefix) for e in error", "project/test_parameters.py"),
    ("device: permutations make step wait", "optim/sources.py", ".to(flat.device, non_blocking=True)", ".to(flat.device)", "test_second_device.py"),
    ("device: probes by a generator of the CPU", "optim/probes.py", "torch.Generator(device).manual_seed(s)", "torch.Generator().manual_seed(s)", "test_second_device.py"),
    ("device: hyperparameters stay on the CPU", "optim/base.py", "return value.to(device=like.device, dtype=like.dtype)", "return value.to(dtype=like.dtype)", "test_second_device.py"),
    ("device: step reads a value", SECOND, "self._last_estimate = estimate_statistics(c, self.members)", "self._last_estimate = estimate_statistics(c, self.members); c[0].sum().item()", "test_second_device.py"),
    ("device: an iteration reads its loss", "engine/train.py", "        if self._frozen:\n            self._restore(self._frozen)\n        if logged:", "        if float(loss[0]) > 0 and self._frozen:\n            self._restore(self._frozen)\n        if logged:", "test_second_device.py"),
    ("device: images are chosen on the CPU", "tasks/image_classification.py", "torch.stack(part).to(self.device) for part", "torch.stack(part) for part", "test_second_device.py"),
]  # fmt: skip


def noticed(folder: Path, tests: str) -> str | None:
    """Return the first test that fails in the copy, or None."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    reference = str(PROJECT.parent / "shared" / "reference")
    env = {"ADAPTIVE_OPT_REFERENCE": reference, **os.environ, "PYTHONPATH": str(folder / "src")}
    done = subprocess.run(
        [*command, str(folder / "tests" / tests)],
        cwd=folder, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return None
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
    return failed[0] if failed else "collection"


def copy(folder: Path) -> None:
    """Copy the project without generated files."""
    ignored = (".git", ".venv", ".*_cache", ".viz", "__pycache__", "data", "mlflow.db")
    ignored += ("mlflow_artifacts", "mlflow_unsent")
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns(*ignored))


def main() -> None:
    """Try every mutation whose name contains the given words."""
    words = sys.argv[1:]
    chosen = [m for m in MUTATIONS if all(w in m[0] for w in words)]
    for tests in sorted({m[-1] for m in chosen}):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / PROJECT.name
            copy(folder)
            found = noticed(folder, tests)
        if found:  # a test that also fails without the mutation proves nothing
            raise SystemExit(f"{tests} does not pass without any mutation: {found}")
    survivors = []
    for name, file, old, new, tests in chosen:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / PROJECT.name
            copy(folder)
            target = folder / "src" / "adaptive_opt" / file
            text = target.read_text(encoding="utf-8")
            if text.count(old) != 1:
                raise SystemExit(f"{name}: {old!r} stands {text.count(old)} times in {file}")
            target.write_text(text.replace(old, new), encoding="utf-8")
            found = noticed(folder, tests)
        print(f"{'noticed ' if found else 'SURVIVED'}  {name:45s} {found or ''}", flush=True)
        if not found:
            survivors.append(name)
    print(f"{len(survivors)} survived")
    raise SystemExit(bool(survivors))


if __name__ == "__main__":
    main()
