"""Maskfold: a competition harness for image segmentation.

The names in `__all__` are the public Python API; everything else may move. Each name is imported when it is first
used, so `import competition` needs nothing beyond the standard library.

    from competition import find_run, submit
    run = find_run("experiments/mine/unet2d.yaml")          # the latest finished run of an experiment
    submit([run], output=Path("submissions/mine.csv"))      # predict the test cases, validate and write the CSV

Example:
    >>> import numpy as np
    >>> from competition import RleFormat, decode, encode
    >>> text = encode(np.array([[0, 1], [1, 1]], bool), RleFormat())
    >>> text
    '2 3'
    >>> decode(text, (2, 2), RleFormat()).astype(int).tolist()
    [[0, 1], [1, 1]]
"""

from importlib import import_module
from typing import Any

from competition.moved import install

__version__ = "0.1.0"

_MODULES = {
    "Competition": "competition.config.competition",
    "Experiment": "competition.config.experiment",
    "MaskfoldError": "competition.errors",
    "Predictor": "competition.export.predictor",
    "RleFormat": "competition.rle_text",
    "Run": "competition.runs.run",
    "decode": "competition.rle",
    "encode": "competition.rle",
    "find_run": "competition.runs.find",
    "load_competition": "competition.config.loading",
    "load_experiment": "competition.config.loading",
    "submit": "competition.submission.submit",
}

__all__ = ["__version__", *_MODULES]

install()


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'competition' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
