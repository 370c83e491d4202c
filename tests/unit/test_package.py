"""The package as a whole: its public names, what importing it costs, and its metadata."""

import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import pml_posets
from pml_posets._moved import GONE, MOVED

ROOT = Path(__file__).resolve().parents[2]


NAMES = """
    BatchAugmentation HOGLDA ImageStore JointTrainer NearestMedoidMiner PosetCrossBatchMemory PosetLoss
    PosetSelfSupervisedLoss Posets PseudoLabelLoss PseudoLabelMiner PseudoLabelSampler RelaxedAssignment
    SurrogateGrouping
"""


def test_the_public_names():
    assert set(NAMES.split()) <= set(pml_posets.__all__)
    assert pml_posets.__all__ == sorted(pml_posets.__all__)
    assert set(pml_posets.__all__) <= set(dir(pml_posets))


@pytest.mark.parametrize("name", pml_posets.__all__)
def test_every_public_name_loads_and_its_docstring_names_every_argument(name):
    found = getattr(pml_posets, name)
    assert found.__name__ == name
    assert found.__module__.startswith("pml_posets.")
    assert found is getattr(import_module(f"pml_posets.{pml_posets._HOMES[name]}"), name)
    text = inspect.getdoc(found)
    for argument, parameter in inspect.signature(found).parameters.items():
        if parameter.kind is not parameter.VAR_KEYWORD:
            assert re.search(rf"^ *.*\b{argument}\b.*:", text, re.M), argument
    assert "Example" in text


def test_other_names_are_an_attribute_error():
    with pytest.raises(AttributeError, match="'pml_posets' has no attribute 'PosetLos'"):
        _ = pml_posets.PosetLos


def test_what_importing_loads():
    code = """
import sys
import pml_posets
heavy = {"torch", "numpy", "scipy", "PIL", "faiss", "skimage", "matplotlib", "h5py", "sklearn"}
assert not heavy & set(sys.modules)
from pml_posets import BatchAugmentation, HOGLDA, ImageStore, Posets, SurrogateGrouping
from pml_posets.plots import loss_curves
heavy = {"faiss", "skimage", "matplotlib", "h5py", "pytorch_metric_learning"}
assert not heavy & set(sys.modules)
loss_curves({"joint": ([1], [1.0])})
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=240)


@pytest.mark.parametrize("old", MOVED)
def test_old_module_paths_still_work_and_warn(old):
    sys.modules.pop(f"pml_posets.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"{old} has moved: import from pml_posets.{MOVED[old]}"):
        found = import_module(f"pml_posets.{old}")
    new = import_module(f"pml_posets.{MOVED[old]}")
    assert new.__all__
    for name in new.__all__:
        assert getattr(found, name) is getattr(new, name)


def test_public_modules_list_their_names():
    for path in (ROOT / "pml_posets").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not any(part.startswith("_") for part in parts):
            module = import_module(".".join(parts))
            assert set(module.__all__) <= set(dir(module)), module
    assert (ROOT / "pml_posets" / "py.typed").is_file()


def test_names_that_moved_to_methods_are_found_with_a_warning():
    from pml_posets import losses, methods

    for name in methods.__all__:
        with pytest.warns(DeprecationWarning, match=f"{name} has moved: import it from pml_posets.methods"):
            assert getattr(losses, name) is getattr(methods, name)
    with pytest.raises(AttributeError, match="no attribute 'NoSuchLoss'"):
        losses.NoSuchLoss  # noqa: B018


def test_measures_of_the_benchmarks_say_where_they_are():
    for module in GONE:
        with pytest.raises(ModuleNotFoundError, match=rf"benchmark code now: see {GONE[module]}"):
            import_module(f"pml_posets.{module}")
    with pytest.raises(
        ImportError, match=r"evaluation.pcp is benchmark code now: see benchmarks/measures/pose"
    ):
        from pml_posets.evaluation import pcp  # noqa: F401
    import benchmarks.measures
    from pml_posets import evaluation

    folder = Path(benchmarks.measures.__file__).parent
    for module, names in evaluation._GONE.items():
        source = (folder / f"{module}.py").read_text()
        for name in names.split():
            assert re.search(rf"^(def|class) {name}\b|^{name}\b", source, re.M), name
