"""Make a table of Maskfold's time divided by the time of other implementations of the same operations.

    python benchmarks/all.py                                  # some minutes; also writes benchmarks/results/
    python benchmarks/all.py --small                          # the smallest sizes, to check that the scripts work
    python benchmarks/all.py -o elsewhere.md inference rle    # some scripts only

Some rivals are not dependencies of Maskfold. Install them, e.g. with `pip install --target FOLDER batchgeneratorsv2
fill_voids edt` and PYTHONPATH; otherwise their rows say "not installed".

The rows come from the function `ratios(small)` of each script in `SCRIPTS`. The table and a description of the machine
are written to a file in `benchmarks/results/` that is named after the processor. With `--small`, a file is written only
if `-o` names it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import re
import time
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from timing import Ratio, format_ratios

from competition.text import format_count

SCRIPTS = ("augment", "inference", "postprocess", "rle")
RESULTS = Path(__file__).parent / "results"
LIBRARIES = (
    "torch", "numpy", "monai", "pycocotools", "connected-components-3d", "opencv-python-headless", "scipy",
    "batchgeneratorsv2", "fill_voids", "edt",
)  # fmt: skip


def processor() -> str:
    """Return the name of the processor, e.g. "AMD EPYC 7763 64-Core Processor"."""
    info = Path("/proc/cpuinfo")
    if info.exists() and (match := re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.M)):
        return match[1].strip()
    return platform.processor() or platform.machine()


def describe_machine() -> list[str]:
    """Return lines that describe the machine and the versions of the compared packages."""
    import psutil
    import torch

    versions = []
    for name in LIBRARIES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return [
        f"{time.strftime('%Y-%m-%d')}: {processor()}, {os.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB of memory, {gpu}, {platform.system()}, "
        f"{format_count(torch.get_num_threads(), 'thread')}.",
        f"Python {platform.python_version()}, {', '.join(versions)}.",
        "Times are processor milliseconds of all threads, medians over calls that alternate; below 1, Maskfold is "
        "faster.",
    ]


def main() -> None:
    """Run the scripts, print the table, and write it to a file (with `--small` only if `-o` is given)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", help=f"default: {' '.join(SCRIPTS)}")
    parser.add_argument("--small", action="store_true", help="the smallest sizes")
    parser.add_argument("-o", "--output", type=Path, help="Markdown file")
    words = parser.parse_args()
    if unknown := set(words.scripts) - set(SCRIPTS):
        parser.error(f"found {', '.join(sorted(unknown))}, expected some of {', '.join(SCRIPTS)}")
    rows: list[Ratio] = []
    for name in words.scripts or SCRIPTS:
        rows += importlib.import_module(name).ratios(words.small)
    text = "\n".join([*describe_machine(), "", *format_ratios(rows)]) + "\n"
    print(text, end="")
    if words.output is not None or not words.small:
        name = re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")
        path = words.output or RESULTS / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"written to {path}")


if __name__ == "__main__":
    main()
