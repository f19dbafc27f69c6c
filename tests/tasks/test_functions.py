"""Functions have the requested condition number; files are read without running code."""

import io
import os
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import torch

from adaptive_opt.errors import StudyError
from adaptive_opt.tasks.function_files import read_function_file
from adaptive_opt.tasks.rr_functions import RRFunction, function_report, import_function, synthesise

SIZES = {"x_dim": 12, "hidden_dim": 13, "y_dim": 14, "layers": 2, "samples": 100}


@pytest.mark.parametrize("condition", [1.0, 29.0, 15099.0, 1e8])
@pytest.mark.parametrize(("x_dim", "y_dim"), [(12, 14), (14, 12), (2, 3)])
def test_condition_number_is_exact(condition, x_dim, y_dim):
    sizes = {**SIZES, "x_dim": x_dim, "y_dim": y_dim}
    f = synthesise("singular_values", condition=condition, seed=0, **sizes)
    assert float(torch.linalg.cond(f.target)) == pytest.approx(condition, rel=1e-6)


@pytest.mark.parametrize("condition", [60.0, 300.0])
def test_row_scaled_draw_is_within_five_percent(condition):
    f = synthesise("row_scaled", condition=condition, seed=0, **SIZES)
    assert float(torch.linalg.cond(f.target)) == pytest.approx(condition, rel=0.05)
    scale = torch.linspace(1, condition, 14, dtype=torch.float64)[:, None]
    assert bool(((f.target / scale >= 0) & (f.target / scale <= 1)).all())


def test_seed_determines_the_function():
    make = lambda seed: synthesise("singular_values", condition=29.0, seed=seed, **SIZES)  # noqa: E731
    assert torch.equal(make(3).target, make(3).target)
    assert torch.equal(make(3).weights[1], make(3).weights[1])
    assert not torch.equal(make(3).target, make(4).target)


@pytest.mark.parametrize("layers", [2, 3, 5])
def test_any_number_of_layers_round_trips(layers):
    f = synthesise("singular_values", condition=10.0, seed=0, **{**SIZES, "layers": layers})
    assert f.dims == [12, *[13] * (layers - 1), 14]
    report = function_report(f, "rmse")
    assert report["parameters"] == sum(w.numel() for w in f.weights)
    again = RRFunction.from_tensors(f.to_tensors())
    assert all(torch.equal(a, b) for a, b in zip(f.weights, again.weights, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"condition": 0.5}, "below 1"),
        ({"condition": 5.0, "x_dim": 1}, "never 5"),
        ({"condition": 5.0, "hidden_dim": 3}, "hidden_dim 3 is below"),
    ],
)
def test_impossible_functions_are_refused(change, message):
    with pytest.raises(StudyError, match=message):
        synthesise("singular_values", **{"condition": 29.0, "seed": 0, **SIZES, **change})


def test_row_scaled_draws_end_with_an_error(monkeypatch):
    monkeypatch.setattr("adaptive_opt.tasks.rr_functions.MAX_DRAWS", 2000)
    with pytest.raises(StudyError, match="use source: singular_values"):
        synthesise("row_scaled", condition=1e9, seed=0, **SIZES)


def write_npz(path, **change):
    rng = np.random.default_rng(0)
    arrays = {
        "A": rng.normal(size=(4, 3)),
        "X": rng.normal(size=(20, 3)),
        "W1": rng.normal(size=(5, 3)),
        "W2": rng.normal(size=(4, 5)),
        **change,
    }
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def test_npz_round_trip(tmp_path):
    a, x, weights = read_function_file(write_npz(tmp_path / "f.npz"))
    assert (a.shape, x.shape, [w.shape for w in weights]) == ((4, 3), (20, 3), [(5, 3), (4, 5)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": np.ones((4, 3))}, "A has rank 1"),
        ({"A": np.zeros((4, 3))}, "A has rank 0"),
        ({"W1": np.ones((2, 3)), "W2": np.ones((4, 2))}, "narrower than 3"),
    ],
)
def test_functions_that_cannot_be_learnt_are_refused(tmp_path, change, message):
    path = write_npz(tmp_path / "f.npz", **change)
    with pytest.raises(StudyError, match=message):
        import_function(str(path), 2, 13, 0)


def test_npz_without_weights_draws_them(tmp_path):
    path = write_npz(tmp_path / "f.npz", W1=None, W2=None)
    f = import_function(str(path), layers=3, hidden_dim=6, seed=0)
    assert f.dims == [3, 6, 6, 4]


@pytest.mark.parametrize("condition", ["29", "15099"])
def test_pth_and_npz_of_the_published_functions_agree(reference, condition):
    npz = read_function_file(reference / f"rahimi_recht_cond{condition}.npz")
    name = f"net_RR_cond{condition}_xdim12_wdim13_ydim14_nlayers2.pth"
    pth = read_function_file(reference / name)
    for a, b in zip((npz[0], npz[1], *npz[2]), (pth[0], pth[1], *pth[2]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": None}, "no array A"),
        ({"X": None}, "no array X"),
        ({"A": np.full((4, 3), np.nan)}, "A is not a finite"),
        ({"X": np.zeros((0, 3))}, "X is not a finite"),
        ({"A": np.zeros(3)}, "A is not a finite"),
        ({"A": np.zeros((4, 9))}, "do not fit"),
        ({"W2": np.zeros((4, 6))}, "do not fit"),
        ({"W2": np.zeros((3, 5))}, "do not fit"),
        ({"A": np.array([["a", "b", "c"]])}, "values that are not numbers"),
        ({"A": np.array([[None, 1, 2]], dtype=object)}, "damaged"),
        ({"W1": None}, "without a gap"),
        ({"W2": None}, "at least two"),
    ],
)
def test_bad_npz_is_refused(tmp_path, change, message):
    path = write_npz(tmp_path / "f.npz", **change)
    with pytest.raises(StudyError, match=message) as error:
        read_function_file(path)
    assert str(path) in str(error.value)


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(StudyError, match="does not exist"):
        read_function_file(tmp_path / "nowhere.npz")
    (tmp_path / "f.mat").write_bytes(b"")
    with pytest.raises(StudyError, match=r"expected \.npz or \.pth"):
        read_function_file(tmp_path / "f.mat")


@pytest.fixture
def save_module(monkeypatch):
    """Function that saves a module like the original study: pickled, with an unknown class."""

    class RahimiRechtFuncModule(torch.nn.Module):
        def __init__(self):
            super().__init__()
            g = torch.Generator().manual_seed(0)
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(3, 5, bias=False), torch.nn.Linear(5, 4, bias=False)
            )
            self.Atrue = torch.randn(4, 3, generator=g)
            self.X = torch.randn(20, 3, generator=g)
            self.Ytrue = (self.Atrue @ self.X.T).T

    module = types.ModuleType("models.RahimiRechtFunc")
    module.RahimiRechtFuncModule = RahimiRechtFuncModule
    RahimiRechtFuncModule.__module__ = module.__name__
    RahimiRechtFuncModule.__qualname__ = RahimiRechtFuncModule.__name__
    monkeypatch.setitem(sys.modules, "models", types.ModuleType("models"))
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def save(path, **attributes):
        made = RahimiRechtFuncModule()
        for name, value in attributes.items():
            setattr(made, name, value)
        torch.save(made, path)
        return made

    return save


def test_pth_round_trip(tmp_path, save_module):
    made = save_module(tmp_path / "f.pth")
    a, x, weights = read_function_file(tmp_path / "f.pth")
    np.testing.assert_array_equal(a, made.Atrue.double())
    np.testing.assert_array_equal(x, made.X.double())
    for w, layer in zip(weights, made.layers, strict=True):
        np.testing.assert_array_equal(w, layer.weight.detach().double())


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"Atrue": torch.zeros(1).expand(100_000, 100_000)}, "from a storage of 1"),
        ({"Atrue": torch.zeros(1).expand(1000, 1000)}, "from a storage of 1"),
        ({"Atrue": torch.zeros(4, 3, dtype=torch.int64)}, "LongStorage"),
        ({"Atrue": None}, "A is not a finite"),
        ({"extra": torch.nn.ReLU()}, "may run code"),
        ({"extra": {("a", "b"): 1}}, "a dict key is not a string"),
    ],
)
def test_unsupported_module_attributes_are_refused(tmp_path, save_module, attributes, message):
    save_module(tmp_path / "f.pth", **attributes)
    with pytest.raises(StudyError, match=message):
        read_function_file(tmp_path / "f.pth")
    save_module(tmp_path / "good.pth")
    read_function_file(tmp_path / "good.pth")  # a refused file does not affect later ones


@pytest.fixture(params=[".npz", ".pth"])
def valid_file(request, tmp_path, save_module):
    """A valid function file of each format."""
    path = tmp_path / f"f{request.param}"
    (write_npz if request.param == ".npz" else save_module)(path)
    return path


def test_garbage_and_truncation_are_refused(valid_file):
    path, good = valid_file, valid_file.read_bytes()
    for content in (b"", b"nonsense" * 100, good[: len(good) // 2], good[:-30]):
        path.write_bytes(content)
        with pytest.raises(StudyError, match="damaged"):
            read_function_file(path)


def test_flipped_bits_never_change_the_function(valid_file):
    path, good = valid_file, valid_file.read_bytes()
    expected = [*read_function_file(path)[:2], *read_function_file(path)[2]]
    refused = 0
    for position in np.random.default_rng(0).integers(0, len(good), 150):
        flipped = bytearray(good)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(bytes(flipped))
        try:
            a, x, weights = read_function_file(path)
        except StudyError:
            refused += 1
            continue
        for before, after in zip(expected, (a, x, *weights), strict=True):
            np.testing.assert_array_equal(before, after)
    assert refused > 30


def test_files_that_unpack_to_more_than_the_limit_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "f.npz", A=np.eye(3), X=np.zeros((3_000_000, 3)))
    with pytest.raises(StudyError, match="unpacks to more than 64 MiB"):
        read_function_file(tmp_path / "f.npz")
    with pytest.raises(StudyError, match="longer than 65536 bytes"):
        read_function_file(archive(tmp_path / "f.pth", b"]" * 100_000 + b"."))


class Trap:
    """Runs a command when unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def archive(path, payload):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("net/data.pkl", payload)
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_a_pth_that_would_run_code_is_refused(tmp_path, protocol):
    marker = tmp_path / "ran"
    payload = pickle.dumps({"Atrue": Trap(marker)}, protocol)
    with pytest.raises(StudyError, match=r"may run code|pickle instruction"):
        read_function_file(archive(tmp_path / "f.pth", payload))
    assert not marker.exists()
    pickle.loads(payload)  # noqa: S301  the trap does run code
    assert marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        b"builtins\neval",
        b"builtins\ngetattr",
        b"torch\nload",
        b"torch.hub\nload",
        b"os\nsystem",
        b"adaptive_opt.tasks.function_files\n_Module",
        b"collections\nnamedtuple",
        b"torch._utils\n_rebuild_tensor",
    ],
)
def test_other_pickle_names_are_refused(tmp_path, name):
    payload = b"\x80\x02c" + name + b"\n(X\x01\x00\x00\x001tR."
    with pytest.raises(StudyError, match="may run code"):
        read_function_file(archive(tmp_path / "f.pth", payload))


@pytest.mark.parametrize(
    "payload",
    [
        b"\x80\x02}q\x00.",
        b"\x80\x02K\x01.",
        b"\x80\x02.",
        b"\x80\x02h\x05.",
        b"\x80\x02tR.",
        b"\x80\x02K\x01K\x02R.",
        b"\x80\x02ccollections\nOrderedDict\n}b.",
        b"\x80\x02X\x07\x00\x00\x00storageQ.",
        b"\x80\x02" + b")\x85" * 50,
    ],
)
def test_invalid_instructions_are_refused(tmp_path, payload):
    with pytest.raises(StudyError, match="damaged"):
        read_function_file(archive(tmp_path / "f.pth", payload))


def test_other_torch_files_are_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save({"A": torch.zeros(2, 2)}, buffer)
    path = tmp_path / "f.pth"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(StudyError, match=str(path)):
        read_function_file(path)
