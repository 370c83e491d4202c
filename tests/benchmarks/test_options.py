"""The benchmarks' command line: defaults, presets, what overrides them, every combination that is wrong."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from refusals import refuses_each

from benchmarks import lsp
from benchmarks.core import options
from benchmarks.core.architectures import AlexNetConfig, TrunkConfig
from benchmarks.core.options import FILES, fast_precision
from benchmarks.core.recipes import PRESETS, Recipe, flag
from benchmarks.olympic import LINE, parse


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Paths such as runs/ are those of a folder of its own."""
    monkeypatch.chdir(tmp_path)


def got(*arguments):
    return parse([str(part) for part in arguments])


# --- Defaults and presets


def test_the_defaults():
    found = got()
    expected = {
        "methods": ("hog-lda", "start", "random", "posets"),
        "seeds": (0, 1, 2),
        "first": "hog-window",
        "window": (0.2, 0.6),
        "hog_size": 96,
        "components": 256,
        "layer": "fc7",
        "device": "auto",
        "output": Path("runs/olympic"),
        "cache": Path("runs/cache"),
        "score_rounds": True,
        "progress": True,
        "resume": False,
        "preset": "clips",
        "recipe": PRESETS["clips"],
    }
    assert {name: getattr(found, name) for name in expected} == expected
    assert (found.data.data_root, found.data.figures) == (None, None)
    here = found.settled("cpu")
    assert (here.device, here.recipe.precision) == ("cpu", fast_precision("cpu"))
    tree = got("--data-root", "tree")
    assert (tree.data.data_root, tree.preset, tree.seeds) == (Path("tree"), "postures", (0,))
    assert tree.recipe == PRESETS["postures"]


def test_each_run_has_a_new_folder():
    for name in ("olympic", "olympic-2", "olympic-3"):
        found = got().output
        assert found == Path("runs") / name
        found.mkdir(parents=True)
    assert got("--output", "mine").output == Path("mine")


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset):
    found = got("--preset", preset)
    assert (found.preset, found.recipe) == (preset, PRESETS[preset])


def test_the_paper_s_preset_starts_from_hog_lda_as_it_is():
    found = got("--preset", "paper")
    assert (found.first, found.window, found.components) == ("hog-lda", None, 0)
    found = got("--preset", "paper", "--initial", "hog-window", "--components", 64)
    assert (found.first, found.window, found.components) == ("hog-window", (0.2, 0.6), 64)
    assert got("--initial", "hog-lda").window is None


# --- What overrides a preset


@pytest.mark.parametrize("field", dataclasses.fields(Recipe), ids=lambda field: field.name)
def test_every_field_of_a_recipe_has_an_option(field):
    others = {
        "trunk": "resnet18", "freeze": ("a.*", "b"), "cached_maps": "features.0", "image_size": 96,
        "whitening": 0.5, "num_classes": 50, "mean_size": 5.5, "num_clusters": 30, "attention": 9.0,
        "scale": (0.5, 2.0), "max_size": 9, "lr": 0.5,
    }  # fmt: skip
    before, option = getattr(PRESETS["small"], field.name), flag(field.name)
    if isinstance(before, bool):
        value, given = not before, [f"--no-{option[2:]}" if before else option]
    else:
        if field.name in others:
            value = others[field.name]
        elif field.metadata["values"]:
            value = next(one for one in field.metadata["values"] if one != before)
        else:
            value = before + 1 if isinstance(before, int) else before / 2 or 0.25
        given = [option, *(value if isinstance(value, tuple) else [value])]
    expected = dataclasses.replace(PRESETS["small"], **{field.name: value})
    assert got("--preset", "small", *given).recipe == expected != PRESETS["small"]


def test_runs_of_several_methods_and_seeds():
    found = got("--method", "posets", "hog", "posets", "--seed", 3, 1, 3)
    assert found.methods == ("posets", "hog")
    assert found.seeds == (3, 1)
    every = got("--method", "all").methods
    assert every == tuple(m for m in LINE.methods if m not in (*FILES, "init", "supervised"))
    assert {"posets", "cliques", "triplet", "ntxent", "hog", "hog-lda", "random"} <= set(every)


def test_imagenet_weights_bring_their_method_and_its_shapes(tmp_path):
    (tmp_path / "alexnet.pth").touch()
    found = got("--method", "all", "--imagenet-weights", "alexnet.pth")
    assert found.methods == tuple(m for m in LINE.methods if m not in ("checkpoint", "init", "supervised"))
    recipe = found.recipe_of("alexnet-imagenet")
    assert (recipe.image_size, recipe.fc_dim, recipe.batch_norm) == (227, 4096, False)
    assert recipe.precision == found.recipe.precision
    assert found.recipe_of("posets") == found.recipe_of("random") == found.recipe
    assert found.recipe_of("posets-fixed") == dataclasses.replace(found.recipe, regroup="fixed")
    assert got("--preset", "paper", "--init", "alexnet.pth").init == Path("alexnet.pth")
    shapes = ("--image-size", 227, "--fc-dim", 4096, "--no-batch-norm")
    assert got("--init", "alexnet.pth", *shapes).recipe.architecture == AlexNetConfig()


def test_another_trunk_has_other_layers():
    assert got("--trunk", "resnet18").layer == "embedding"
    assert got("--trunk", "resnet18", "--layer", "pooled").layer == "pooled"
    assert got("--layer", "embedding").layer == "embedding"
    assert lsp.LINE.layer_of("googlenet") == "pooled"
    recipe = got("--trunk", "resnet50", "--image-size", 32, "--fc-dim", 128).recipe
    assert recipe.architecture == TrunkConfig("resnet50", 32, 128)
    assert recipe.settings()["small_stem"]


def test_everything_else_is_passed_on():
    found = got(
        "--data-root", "tree", "--categories", "run", "jump", "--skip-unreadable", "--cache", "c",
        "--output", "o", "--resume", "--device", "cpu", "--workers", 0, "--layer", "pool5",
        "--no-round-scores", "--quiet", "--initial", "hog-window", "--window", 0.1, 0.3,
        "--hog-size", 64, "--components", 0,
    )  # fmt: skip
    expected = {
        "resume": True,
        "score_rounds": False,
        "progress": False,
        "cache": Path("c"),
        "output": Path("o"),
        "device": "cpu",
        "workers": 0,
        "layer": "pool5",
        "window": (0.1, 0.3),
        "hog_size": 64,
        "components": 0,
    }
    assert {name: getattr(found, name) for name in expected} == expected
    assert (found.data.categories, found.data.skip_unreadable) == (["run", "jump"], True)
    assert got("--figures", "tiny").data.figures == "tiny"


def test_the_help_is_short_and_says_what_each_method_is(capsys):
    with pytest.raises(SystemExit) as stop:
        got("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 100
    assert text.count("python benchmarks/olympic.py") == 3
    for method in LINE.methods:
        assert f"  {method} " in text
    assert "--top-fraction" not in text


@pytest.mark.parametrize(
    ("name", "arguments", "status"),
    [
        *((name, "--help", 0) for name in ("deeppose", "olympic", "speed")),
        ("olympic", "--method poset", 2),
        ("olympic", "--window 0 1", 1),
    ],
)
def test_the_command_line_is_answered_before_torch_is_imported(name, arguments, status):
    script = Path(lsp.__file__).with_name(f"{name}.py")
    command = [sys.executable, "-X", "importtime", script, *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert status or "--output" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "faiss", "pandas", "matplotlib", "pml_posets.data"}


# --- --set


@pytest.mark.parametrize(
    ("setting", "option"),
    [
        ("top_fraction=0.3", "--top-fraction 0.3"),
        ("random-fraction=0.2", "--random-fraction 0.2"),
        ("lambda=0.5", "--lambda 0.5"),
        ("lam=0.5", "--lambda 0.5"),
        ("refine=yes", "--refine"),
        ("batch_norm=no", "--no-batch-norm"),
        ("scale=0.5,2", "--scale 0.5 2"),
        ("window=0.1,0.3", "--window 0.1 0.3"),
        ("hog_size=48 components=0", "--hog-size 48 --components 0"),
    ],
)
def test_settings_for_trials(setting, option):
    found, expected = got("--set", *setting.split(), "--quiet"), got(*option.split(), "--quiet")
    assert found == expected != got("--quiet")


test_settings_that_are_none = refuses_each(
    lambda setting: got("--set", setting),
    ("topfraction=1", "--set topfraction=1: give name=value; --set help lists the names"),
    ("refine", "--set refine: give name=value"),
    ("refine=1", "--set refine must be yes or no, got '1'"),
    ("mix=2", "--mix must be at most 1, got 2"),
    error=ValueError,
)


def test_all_settings_are_listed(capsys):
    with pytest.raises(SystemExit) as stop:
        got("--set", "help")
    assert stop.value.code == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]}
    fields = {flag(field.name)[2:].replace("-", "_") for field in dataclasses.fields(Recipe)}
    assert listed == fields | {"hog_size", "window", "components"}


def test_precision_follows_the_hardware(monkeypatch, tmp_path):
    assert fast_precision("cpu") in ("float32", "bfloat16")
    monkeypatch.setattr(options, "Path", lambda name: tmp_path / "cpuinfo")
    assert fast_precision("cpu") == "float32"
    for known, expected in (("amx_bf16", "bfloat16"), ("avx512_bf16", "bfloat16"), ("avx512f", "float32")):
        (tmp_path / "cpuinfo").write_text(f"flags : fpu {known} sse\n")
        assert fast_precision("cpu") == expected
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert fast_precision("cuda:0") == "float32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert fast_precision("cuda:0") == "bfloat16"


# --- What is wrong


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--data-root tree --figures tiny", "leave one of them out"),
        ("--skip-unreadable", "--skip-unreadable is for a --data-root"),
        ("--seed 0 -1", "--seed must be 0 or more, got -1"),
        ("--workers -1", "--workers must be 0 or more, got -1"),
        ("--components -5", "--components must be 0 or more, got -5"),
        ("--hog-size 90", "--hog-size must be a multiple of 8 from 16, got 90"),
        ("--hog-size 8", "from 16, got 8"),
        (
            "--initial hog --window 0.2 0.6",
            "--window is for --first-similarities hog-window, which is hog here",
        ),
        ("--preset paper --window 0.2 0.6", "which is hog-lda here"),
        ("--window 0.2 0", "--window must be two numbers above 0, got 0.2 0"),
        ("--window nan 1", "--window must be two numbers above 0, got nan 1"),
        ("--resume", "--resume needs --output"),
        ("--method alexnet-imagenet", "needs --imagenet-weights FILE"),
        ("--method all --imagenet-weights w.pth", "--imagenet-weights: there is no file w.pth"),
        ("--method checkpoint", "needs --checkpoint FILE"),
        ("--method checkpoint --checkpoint c.pt", "--checkpoint: there is no file c.pt"),
        ("--preset paper --init w.pth", "--init: there is no file w.pth"),
        ("--init .", r"--init: there is no file \."),
        ("--trunk resnet18 --layer fc6", "of --trunk resnet18 take pooled or embedding"),
        ("--device gpu", "--device must be auto, cpu, cuda"),
        ("--lambda -1", "--lambda must be at least 0, got -1"),
        ("--image-size 63", "--image-size 64"),
        ("--trunk hog --image-size 63", "multiple of 8 from 32, got 63"),
    ],
)
def test_wrong_combinations(arguments, text):
    with pytest.raises(ValueError, match=text):
        got(*arguments.split())
    assert list(Path().iterdir()) == []  # nothing was begun


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--init", "torchvision's shapes: --image-size 227 --fc-dim 4096 --no-batch-norm"),
        ("--preset paper --batch-norm --init", "torchvision's shapes"),
        ("--preset paper --image-size 128 --init", "torchvision's shapes"),
        ("--trunk resnet18 --image-size 32 --init", "--init needs torchvision's stem: --image-size 64"),
        ("--imagenet-weights", "is for --method alexnet-imagenet; to begin from them: --init FILE"),
        ("--checkpoint", "--checkpoint is for --method checkpoint"),
        (
            "--trunk resnet50 --method alexnet-imagenet --imagenet-weights",
            "goes with --trunk alexnet; for weights of resnet50: --init FILE",
        ),
    ],
)
def test_files_that_do_not_fit(arguments, text):
    Path("w.pth").touch()
    with pytest.raises(ValueError, match=text):
        got(*arguments.split(), "w.pth")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--method poset", "invalid choice: 'poset'"),
        ("--layer conv1", "invalid choice: 'conv1'"),
        ("--preset huge", "invalid choice: 'huge'"),
        ("--regroup never", "invalid choice: 'never'"),
        ("--first-similarities lda", "invalid choice: 'lda'"),
        ("--rounds 2.5", "invalid int value: '2.5'"),
        ("--lambda much", "invalid float value: 'much'"),
        ("--categories", "expected at least one argument"),
        ("--window 1", "expected 2 arguments"),
        ("--no-such-option", "unrecognized arguments: --no-such-option"),
    ],
)
def test_what_is_no_option(arguments, text, capsys):
    with pytest.raises(SystemExit) as stop:
        got(*arguments.split())
    assert stop.value.code == 2
    assert text in capsys.readouterr().err
