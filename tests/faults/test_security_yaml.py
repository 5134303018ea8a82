"""Words of a stranger: tags, targets and names in YAML, tables, file names and DICOM run nothing and lead nowhere."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from competition.config.instantiate import resolve_target
from competition.config.loading import load_experiment
from competition.errors import MaskfoldError
from competition.text import escape_formula, is_formula, name_problem
from tests.faults.strangers import FORMULAS, ROOT, watched

pytestmark = pytest.mark.faults


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    yield from watched(tmp_path, monkeypatch)


# YAML


TAGS = (
    "!!python/object/apply:os.mkdir [evil]",
    "!!python/object/new:os.mkdir [evil]",
    "!!python/name:os.system",
    "!!python/module:os",
    "!<tag:yaml.org,2002:python/object/apply:os.mkdir> [evil]",
    "!!python/object/apply:subprocess.check_output [[mkdir, evil]]",
)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("where", ["experiment", "competition", "word", "target's args"])
def test_a_tag_that_calls_is_refused_wherever_it_stands(here: Path, tag: str, where: str) -> None:
    exp, comp = ((ROOT / "experiments/demo2d" / name).read_text() for name in ("unet2d.yaml", "competition.yaml"))
    if where == "target's args":
        exp = exp.replace("decoder_channels: [96, 64, 32, 16]", f"decoder_channels: {tag}")
    (here / "unet2d.yaml").write_text(exp + (f"\nextra: {tag}\n" if where == "experiment" else ""))
    (here / "competition.yaml").write_text(comp + (f"\nextra: {tag}\n" if where == "competition" else ""))
    with pytest.raises(MaskfoldError, match="tag"):
        load_experiment(here / "unet2d.yaml", [f"seed={tag}"] if where == "word" else [])


CHAINS = (
    "os.system",
    "posix.system",
    "builtins.exec",
    "subprocess.Popen",
    "torch.os.system",
    "torch.sys.modules",
    "torch.nn.os.system",
    "torch.nn.modules.module.os.system",
    "torch.serialization.os.system",
    "torch.hub.os.system",
    "torch.hub.load",
    "torch.load",
    "torch.serialization.load",
    "torch.utils.cpp_extension.load",
    "torch.package.PackageImporter",
    "torch.utils.tensorboard.SummaryWriter",
    "torch.jit.ScriptModule",
    "torch.fx.GraphModule",
    "monai.os.system",
    "monai.bundle.run",
    "monai.bundle.ConfigWorkflow",
    "monai.bundle.ConfigParser",
    "monai.utils.misc.subprocess.run",
    "monai.apps.datasets.DecathlonDataset",
    "monai.apps.download_url",
    "monai.data.PersistentDataset",
    "monai.transforms.LoadImaged",
    "monai.transforms.SaveImaged",
    "monai.transforms.io.dictionary.LoadImaged",
    "monai.transforms.SaveClassificationd",
    "monai.losses.PerceptualLoss",
    "monai.visualize.VisualizeNet",
    "timm.models.helpers.load_checkpoint",
    "timm.utils.os.system",
    "albumentations.core.serialization.load",
    "segmentation_models_pytorch.os.system",
    "competition.config.instantiate.os.system",
    "competition.training.fold.signal.signal",
    "torch.nn.Module.__init__.__globals__",
    "torch.nn.Module.__subclasses__",
    "torch.nn.Linear.__class__",
    "torch._C._jit_init",
    "torch.nn.Module.forward.__builtins__.eval",
    "competition.export.mlflow_script.mlflow",
)


@pytest.mark.parametrize("path", CHAINS)
@pytest.mark.parametrize("kind", [object, None], ids=["class", "anything"])
def test_no_target_reaches_what_runs_reads_or_writes(path: str, kind: Any) -> None:
    with pytest.raises(MaskfoldError) as caught:
        resolve_target(path, kind, "model.target")
    assert caught.value.status == 2 and caught.value.message.startswith("model.target: ")


def test_what_networks_losses_and_transforms_need_is_still_there() -> None:
    for path in (
        "torch.nn.Conv2d",
        "torch.optim.AdamW",
        "monai.networks.nets.DynUNet",
        "monai.losses.DiceCELoss",
        "timm.optim.Lamb",
        "segmentation_models_pytorch.Unet",
        "albumentations.HorizontalFlip",
        "monai.transforms.RandGaussianNoised",
        "monai.transforms.RandAffined",
        "monai.transforms.Compose",
        "torch.optim.swa_utils.AveragedModel",
    ):
        assert isinstance(resolve_target(path, object, "x.target"), type)


def test_a_listed_transform_cannot_name_what_it_calls(here: Path) -> None:
    """MONAI's reader of images calls whatever `reader` names: shown here, then refused."""
    import warnings

    from monai.transforms import LoadImaged

    from competition.augment.custom import MonaiTransforms
    from competition.config.experiment import AugmentConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        LoadImaged(keys=["image"], reader="os.mkdir", path="evil")
        assert (here / "evil").is_dir()
        (here / "evil").rmdir()
        listed = {
            "target": "monai.transforms.LoadImaged",
            "args": {"keys": ["image"], "reader": "os.mkdir", "path": "evil"},
        }
        group = {"target": "monai.transforms.Compose", "args": {"transforms": [listed]}}
        for one in (listed, group):
            with pytest.raises(MaskfoldError, match="read or write files or run code"):
                MonaiTransforms(AugmentConfig.model_validate({"transforms": [one]}))


def test_trust_is_given_on_the_command_line_or_in_the_environment_and_never_in_the_yaml(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "nets.py").write_text("import os\nos.mkdir('evil')\nclass Net: pass\n")
    text = (ROOT / "experiments/demo2d/unet2d.yaml").read_text().replace("segmentation_models_pytorch.Unet", "nets.Net")
    shutil.copyfile(ROOT / "experiments/demo2d/competition.yaml", here / "competition.yaml")
    for more in ("", "trust: [nets]\n", "run: {trust: [nets]}\n", "model.trust: nets\n"):
        (here / "unet2d.yaml").write_text(re.sub(r"(?m)^run:.*\n", "", text) + more)
        with pytest.raises(MaskfoldError, match="not in a trusted package|trust"):
            load_experiment(here / "unet2d.yaml")
    (here / "unet2d.yaml").write_text(text)
    assert load_experiment(here / "unet2d.yaml", trust=["nets"]).model.target == "nets.Net"
    monkeypatch.setenv("MASKFOLD_TRUST", "nets")
    assert load_experiment(here / "unet2d.yaml").model.target == "nets.Net"
    assert isinstance(
        resolve_target("monai.transforms.LoadImaged", object, "x", ["monai"]), type
    )  # all of monai, said by name


@pytest.mark.parametrize(
    "words",
    [
        ["competition.name=../../evil"],
        ["competition.name=a/b"],
        ['competition.classes=["../../evil", b]'],
        ["competition.classes=[a/b, c]"],
        ['competition.classes=["a\\nb", c]'],
        ['competition.classes=["..", c]'],
        ["competition.classes=[\"=cmd|' /C calc'!A0\", c]"],
        ['competition.classes=["@SUM(1+1)", c]'],
    ],
)
def test_names_in_a_yaml_that_would_become_paths_or_formulas_are_refused(words: list[str]) -> None:
    with pytest.raises(MaskfoldError) as caught:
        load_experiment(ROOT / "experiments/demo2d/unet2d.yaml", words)
    assert caught.value.status == 2


@pytest.mark.parametrize("pattern", ["/etc/{id}.png", "C:/x/{id}.png"])
def test_patterns_begin_below_the_root(demo2d: Path, pattern: str) -> None:
    from competition.data.cases import case_table

    comp = load_experiment(ROOT / "experiments/demo2d/unet2d.yaml", [f"competition.root={demo2d}"]).competition
    train = comp.train.model_copy(update={"images": pattern})
    with pytest.raises(MaskfoldError, match="out of competition.root"):
        case_table(comp.model_copy(update={"train": train}))


# Names in files


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_are_told_from_names(text: str) -> None:
    assert is_formula(text) and is_formula(f"\t{text}") and name_problem(text) and escape_formula(text) == f"'{text}"
    assert escape_formula(escape_formula(text)) == escape_formula(text)


@pytest.mark.parametrize(
    "text",
    ["case_1", "-12", "T1+ (late)", "+1", "a=b", "x@y", "left|right", "=", "2.5e-3", "−1", "<script>", ".a", "ä ö"],
)
def test_names_that_only_look_odd_are_names(text: str) -> None:
    assert not is_formula(text) and name_problem(text) is None and escape_formula(text) == text


@pytest.mark.parametrize("name", ["=cmd|' \\C calc'!A0".replace("\\", "_"), "@SUM(1+1)", "a\nb", "+x(1)|2"])
def test_a_file_whose_name_is_a_formula_is_no_case(demo2d: Path, here: Path, name: str) -> None:
    from competition.data.cases import case_table

    shutil.copytree(demo2d, here / "data")
    first = sorted((here / "data/images").iterdir())[0].name
    for folder in ("images", "masks"):
        (here / "data" / folder / first).rename(here / "data" / folder / f"{name}.png")
    comp = load_experiment(ROOT / "experiments/demo2d/unet2d.yaml", [f"competition.root={here / 'data'}"]).competition
    with pytest.raises(MaskfoldError, match="formula|line break"):
        case_table(comp)
    table = case_table(comp.model_copy(update={"on_bad_case": "skip"}))
    assert len(table) == 9 and name in dict(table.attrs["skipped"])


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", ".", "a\0b", "C:\\x", "a/../../b"])
def test_ids_become_file_names_within_their_folder(here: Path, name: str) -> None:
    from competition.runs.oof import OofStore

    path = OofStore(here / "oof").path(name)
    assert path.parent == here / "oof" and "\0" not in path.name and path.resolve().parent == (here / "oof").resolve()


def test_ids_of_tables_that_lead_elsewhere_are_of_no_case(demo2d: Path, here: Path) -> None:
    from competition.config.profiles import profile_of
    from competition.submission.reader import read_sample
    from competition.submission.writer import write_submission

    comp = load_experiment(ROOT / "experiments/demo2d/unet2d.yaml", [f"competition.root={demo2d}"]).competition
    sample = here / "sample.csv"
    sample.write_text("id,class,predicted\n../../x,ring,\n../../x,grain,\n")
    with pytest.raises(MaskfoldError, match=r"id \.\./\.\./x, but no test image"):
        read_sample(sample, profile_of(comp)).check_ids(["a", "b"])
    with pytest.raises(MaskfoldError, match="has no row for"):
        write_submission([("a", "ring", np.ones((4, 4), bool))], profile_of(comp), here / "out.csv", sample)
    assert sorted(path.name for path in here.iterdir()) == ["sample.csv"]


def test_words_of_a_dicom_study_are_text_in_our_tables_and_stay_in_the_folder(here: Path) -> None:
    from competition.dicom.convert import convert_folder
    from tests.dicom.files import AXIAL, positions, volume, write_segmentation, write_series

    formula = FORMULAS[0]
    write_series(here / "in", volume((6, 5, 4)), patient="../../../evil", SeriesDescription=formula)
    ones = [(1, place, np.ones((5, 6), np.uint8)) for place in positions(4, AXIAL)]
    write_segmentation(here / "in" / "seg", ones, {1: formula}, patient="../../../evil")
    convert_folder(here / "in", here / "out")
    rows = [
        cell
        for name in ("series.csv", "segments.csv")
        if (here / "out" / name).exists()
        for row in csv.reader((here / "out" / name).open())
        for cell in row
    ]
    assert any("cmd" in cell for cell in rows)
    assert not [cell for cell in rows if is_formula(cell) and not cell.startswith("'")]
    (here / "out").rename(here / "kept")
    inside = {path.name for path in here.iterdir()}
    assert inside == {"in", "kept"}
    for path in (here / "kept").rglob("*"):
        path.rename(path.with_name(path.name.replace("evil", "patient")))


def test_a_result_cannot_name_weights_elsewhere(here: Path) -> None:
    from competition.runs.fold import FoldResult
    from tests.faults.fuzz_records import RESULT

    (here / "result.json").write_text(json.dumps(RESULT | {"weights": "../../weights.safetensors"}))
    with pytest.raises(MaskfoldError, match=r"result.json is damaged"):
        FoldResult.read(here)
