"""The page that lies in a bundle."""

from __future__ import annotations

from typing import Any

TEXT = """# {title}

{networks} networks, exported by Maskfold {version}. Needed are Python {python} or newer and the packages of `requirements.txt`;
nothing is fetched from a network, and nothing is unpickled.

    python run.py --input /kaggle/input/x --output submission.csv --hours 9

- `--input` is the competition's folder as the host mounts it. The test images are those that are there when it runs.
- `--hours 9` measures the first cases and leaves out what does not fit: test-time augmentation first, then one network after
  the other, those of the lowest weight first; each step is said in a line. Where time suffices, nothing changes. Cases that
  are not reached at the end get empty masks.
- `--devices auto` takes every GPU, else the CPU; `--devices 1`, `cuda:1` or `cpu,cpu` choose.
- `--go-on` gives a case that cannot be read or predicted empty masks instead of ending everything.
- `--onnx` predicts by onnxruntime, if the bundle was exported with `--onnx`{onnx}.

On Kaggle: make a dataset of this folder, attach it to `notebook.ipynb` together with the competition, and submit.

| what | where |
|---|---|
| runs with their weights | `runs/` |
| what is blended, and how masks are made of it | `bundle.json` |
| the code, as it was at the export | `code/` |
| packages | `requirements.txt`{wheels} |
| SHA-256 of every file, which `run.py` checks | `manifest.json` |

| run | weight | networks |
|---|---|---|
{runs}

{expected}
"""


def readme(
    title: str, version: str, python: str, runs: list[dict[str, Any]], expected: str, wheels: bool, onnx: bool
) -> str:
    """The page as Markdown.

    Args:
        title: of the competition.
        version: of Maskfold.
        python: the oldest that is known to work.
        runs: as in bundle.json, with `networks`.
        expected: a sentence on the score.
        wheels: whether there are wheels.
        onnx: whether there are ONNX files.
    """
    rows = "\n".join(f"| {one['name']} {one['hash']} | {one['weight']:.4g} | {one['networks']} |" for one in runs)
    return TEXT.format(
        title=title,
        version=version,
        python=python,
        networks=sum(one["networks"] for one in runs),
        runs=rows,
        expected=expected,
        wheels=", as wheels in `wheels/`" if wheels else "",
        onnx="" if onnx else "; this one was not",
    )
