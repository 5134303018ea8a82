"""Files of a stranger: pickles do not run, archives stay in their folder, a model predicts without its code."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from competition.errors import MaskfoldError
from tests.faults.strangers import ARCHIVES, Evil, evil_pickle, old_torch, torch_archive, watched

pytestmark = pytest.mark.faults


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    yield from watched(tmp_path, monkeypatch)


def test_the_pickles_of_these_tests_do_run_where_they_are_let(here: Path) -> None:
    """Else the tests below would show nothing."""
    import torch

    for content in (torch_archive(), old_torch()):
        with contextlib.suppress(Exception):  # what comes after does not matter
            torch.load(io.BytesIO(content), weights_only=False)
        assert (here / "evil").is_dir()
        (here / "evil").rmdir()


# Files that would be unpickled


@pytest.mark.parametrize("content", [evil_pickle(), torch_archive(), old_torch()], ids=["pickle", "archive", "old"])
@pytest.mark.parametrize(
    "kind",
    [
        "last.pt",
        "weights.safetensors",
        "weights.pt",
        "encoder.pth",
        "encoder.safetensors",
        "image.npy",
        "image.npz",
        "labels.npy",
        "image.png",
        "case.nii.gz",
        "oof",
    ],
)
def test_a_pickle_in_the_place_of_a_file_does_not_run(here: Path, kind: str, content: bytes) -> None:
    import torch

    from competition.data.readers import read_image, read_labels
    from competition.models.pretrained import read_tensors
    from competition.runs.checkpoint import load_checkpoint, load_weights
    from competition.runs.oof import OofStore

    path = here / ("a.zarr.zip" if kind == "oof" else kind)
    path.write_bytes(content)
    readers: dict[str, Callable[[], Any]] = {
        "last.pt": lambda: load_checkpoint(path),
        "encoder.pth": lambda: read_tensors(path),
        "oof": lambda: OofStore(here).read("a"),
        "encoder.safetensors": lambda: read_tensors(path),
        "labels.npy": lambda: read_labels(path),
    }
    read = readers.get(kind, lambda: read_image(path))
    if kind.startswith("weights"):
        read = lambda: load_weights(torch.nn.Linear(1, 1), path)  # noqa: E731
    with pytest.raises(MaskfoldError) as caught:
        read()
    assert path.name in str(caught.value)


@pytest.mark.parametrize("name", ["image.npy", "mask.npy", "foreground.npy"])
def test_objects_in_a_prepared_case_are_not_unpickled(here: Path, name: str) -> None:
    from competition.data.cache import PreprocessedCase
    from tests.prepared import experiment, prepared_case

    exp = experiment(2, [8, 8])
    folder = prepared_case(here, "case", np.zeros((1, 8, 8), np.uint8), np.zeros((1, 8, 8), np.uint8), exp)
    memory = io.BytesIO()
    np.save(memory, np.array([Evil()], dtype=object), allow_pickle=True)
    (folder / name).write_bytes(memory.getvalue())
    record = json.loads((folder / "case.json").read_text())
    record["sizes"][name] = len(memory.getvalue())
    (folder / "case.json").write_text(json.dumps(record))
    case = PreprocessedCase.open(folder)
    with pytest.raises(MaskfoldError, match=name):
        getattr(case, name.removesuffix(".npy"))


@pytest.mark.parametrize(
    "metadata",
    [
        {
            ".zarray": {
                "zarr_format": 2,
                "shape": [2],
                "chunks": [2],
                "dtype": "|O",
                "compressor": None,
                "fill_value": 0,
                "order": "C",
                "filters": [{"id": "pickle"}],
            }
        },
        {
            ".zarray": {
                "zarr_format": 2,
                "shape": [2],
                "chunks": [2],
                "dtype": "<f4",
                "compressor": {"id": "pickle"},
                "fill_value": 0,
                "order": "C",
                "filters": None,
            }
        },
        {
            "zarr.json": {
                "zarr_format": 3,
                "node_type": "array",
                "shape": [2],
                "data_type": "float32",
                "fill_value": 0,
                "attributes": {},
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}},
                "codecs": [{"name": "numcodecs.pickle"}],
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            }
        },
        {
            "zarr.json": {
                "zarr_format": 3,
                "node_type": "array",
                "shape": [2],
                "data_type": "float32",
                "fill_value": 0,
                "attributes": {},
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}},
                "codecs": [
                    {"name": "bytes", "configuration": {"endian": "little"}},
                    {"name": "gzip", "configuration": {"level": 1}},
                ],
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            }
        },
    ],
)
def test_predictions_are_unpacked_by_the_codecs_of_our_own_writer_only(here: Path, metadata: dict[str, Any]) -> None:
    from competition.runs.oof import OofStore

    with zipfile.ZipFile(here / "a.zarr.zip", "w") as archive:
        for name, plain in metadata.items():
            archive.writestr(name, json.dumps(plain))
        for chunk in ("0", "c/0"):  # what gzip unpacks would be a sound array
            archive.writestr(chunk, gzip.compress(bytes(8)) if "gzip" in str(metadata) else evil_pickle())
    with pytest.raises(MaskfoldError, match="damaged"):
        OofStore(here).read("a")


# Archives


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_stays_in_its_folder_or_is_not_unpacked_at_all(here: Path, name: str) -> None:
    from competition.datasets.download import unpack_archive

    place = here / "a" / "b"
    place.mkdir(parents=True)
    (here / "bad.archive").write_bytes(ARCHIVES[name])
    with pytest.raises(MaskfoldError, match=r"was not unpacked: its member"):
        unpack_archive(here / "bad.archive", place / "toy", lambda rows, _: rows)
    assert sorted(path.relative_to(here).as_posix() for path in here.rglob("*")) == ["a", "a/b", "bad.archive"]


# A model of a stranger


def test_a_models_folder_holds_nothing_that_runs_and_a_strangers_predicts_without_its_code(
    tiny: Any, finished: Callable[..., Any], here: Path
) -> None:
    from competition.export.mlflow_model import write_predictor_folder
    from competition.export.predictor import Predictor

    run = finished(tiny(2, "folds.run=[0]"))
    write_predictor_folder(run, here / "model" / "artifacts" / "run")
    folder = here / "model" / "artifacts" / "run"
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert kinds == {".yaml", ".json", ".safetensors"}
    for place in (here / "model", folder, folder / "fold_0"):  # a stranger's additions
        for name in (
            "sitecustomize.py",
            "served.py",
            "__init__.py",
            "competition.py",
            "torch.py",
            "conftest.py",
            "python_model.pkl",
        ):
            (place / name).write_text("import os\nos.mkdir('evil')\n")
    picture = np.random.default_rng(0).integers(0, 255, (40, 48), np.uint8)
    [mask] = Predictor(folder).predict([picture])
    assert mask.shape == (40, 48)
    (folder / "fold_0" / "weights.safetensors").write_bytes(torch_archive())
    with pytest.raises(MaskfoldError, match=r"weights.safetensors cannot be read"):
        Predictor(folder).predict([picture])
    text = (folder / "experiment.yaml").read_text()
    (folder / "experiment.yaml").write_text(text.replace("monai.networks.nets.BasicUNet", "torch.os.mkdir"))
    with pytest.raises(MaskfoldError, match="module"):
        Predictor(folder).predict([picture])


def test_a_folds_process_imports_nothing_from_the_folder_it_works_in(here: Path, tiny: Any) -> None:
    """A stranger's archive to work in may hold a `torch.py`."""
    from competition.runs.fold import FoldJob
    from competition.training.fold_process import start_fold

    (here / "torch_of_a_stranger.py").write_text("import os\nos.mkdir('evil')\n")
    job = FoldJob(here, here / "fold_0", 0, 0, here, 1)
    code = (
        "import sys, competition; assert '' not in sys.path and sys.argv[1] not in sys.path\nimport torch_of_a_stranger"
    )
    process = start_fold(job, (sys.executable, "-c", code))
    assert process.wait(60) == 1
    assert "No module named 'torch_of_a_stranger'" in (job.folder / "output.txt").read_text()
