"""Damage files in many ways and check how they are read: `python -m tests.faults.fuzz OUT.jsonl [KIND …] [--times 10]`.

One process imports all libraries, then forks a child for each kind of file, so that hundreds of files take only
seconds. If a child hangs or needs too much memory, the parent kills it and records this. Another child then continues
with the next file.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 10.0  # maximum processor seconds per file; not wall time, because the machine may be busy
PATIENCE = 180.0  # maximum wall time per file in seconds, for a child that waits without using the processor
SPIKE = 2 * 2**30  # maximum growth of the resident memory in bytes while a file is read
SEED = 20
GOOD = ("refused", "same", "agrees")


@dataclass(frozen=True)
class Outcome:
    """Describe how a damaged file was read.

    Attributes:
        kind: kind of the file.
        number: number of the damaged file within its kind.
        what: how the file was damaged.
        verdict: "refused" (an error that names the file and what to do), "same" (the same content as the intact file),
            "agrees" (an independent decoder reads the same content), or a failure: "traceback", "nameless" (the error
            does not name the file or what to do), "wrong", "executed", "hang", "memory" or "died".
        words: the message of the error.
        spike: growth of the peak resident memory in bytes.
        seconds: processor seconds.
    """

    kind: str
    number: int
    what: str
    verdict: str
    words: str = ""
    spike: int = 0
    seconds: float = 0.0


def targets(folder: Path) -> dict[str, Any]:
    """Return the intact files and their readers, by kind; temporary files are written to `folder`."""
    from tests.faults import fuzz_dicom, fuzz_records, fuzz_state, fuzz_targets

    (folder / "made").mkdir()
    return {
        **fuzz_targets.pictures(),
        **fuzz_targets.volumes(),
        **fuzz_targets.arrays(),
        **fuzz_dicom.dicom(folder / "made" / "study"),
        **fuzz_state.tables(),
        **fuzz_state.yamls(),
        **fuzz_state.checkpoints(folder / "made"),
        **fuzz_records.prepared(folder / "made" / "cache"),
        **fuzz_records.records(folder / "made"),
    }


def same(one: Any, other: Any) -> bool:
    """Return whether two results are equal; floats may differ by rounding, and Ellipsis equals everything.

    Texts are compared with the values that they stand for in YAML.
    """
    if other is ...:
        return True
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        if one is None or other is None or np.shape(one) != np.shape(other):
            return one is None or other is None  # one of the two does not know the affine
        return (
            bool(np.allclose(one, other, rtol=1e-5, atol=1e-4, equal_nan=True))
            if np.asarray(one).dtype.kind == "f"
            else bool(np.array_equal(one, other))
        )
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one.values(), other.values()))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other))
    if isinstance(other, str) and not isinstance(one, str):
        return _meant(other) == one or str(one).casefold() == other.casefold()
    return (
        one == other
        or (one != one and other != other)
        or (isinstance(one, float) and np.isclose(one, other, rtol=1e-5))
    )


def _meant(text: str) -> Any:
    """Return the value of a YAML scalar: None, a number, or the text itself."""
    if text in ("", "~") or text.casefold() == "null":
        return None
    try:
        return int(text.replace("_", ""), 0) if text.lower().lstrip("+-").startswith("0x") else float(text)
    except ValueError:
        return text


def look(kind: str, target: Any, number: int, what: str, content: bytes, sound: Any, folder: Path) -> Outcome:
    """Write a damaged file, read it, and judge the result.

    Args:
        kind: kind of the file.
        target: description of this kind, see `Target`.
        number: number of the damaged file.
        what: how it was damaged.
        content: the damaged bytes.
        sound: what the intact file is read as.
        folder: folder for the file.
    """
    from competition.errors import MaskfoldError

    path = place(target, content, folder)
    before = _peak(reset=True)
    try:
        found = target.read(path)
        verdict, words = ("same", "") if same(found, sound) else ("", "")
    except MaskfoldError as error:
        words = str(error)
        named = any(name in error.message for name in (path.name, *target.named))
        verdict = "refused" if named and len(error.hint) > 10 and "Traceback" not in words else "nameless"
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        import traceback

        verdict, words = (
            "traceback",
            f"{type(error).__name__}: {error} | {traceback.extract_tb(error.__traceback__)[-1]}"[:600],
        )
    spike = _peak() - before
    if (folder / "evil").exists():
        return Outcome(kind, number, what, "executed", words, spike)
    if spike > SPIKE:
        verdict = "memory"
    if not verdict:
        try:
            other = target.said(content)
            verdict = "agrees" if same(found, other) else "wrong"
        except Exception as error:  # noqa: BLE001 - the other decoder refuses in its own way
            verdict, words = "wrong", f"the other decoder refuses: {type(error).__name__}: {str(error)[:200]}"
    return Outcome(kind, number, what, verdict, words[:600], spike)


def place(target: Any, content: bytes, folder: Path) -> Path:
    """Write a file and its accompanying files to an emptied folder, change to this folder, and return the path."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, one in {**target.beside, target.file: content}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(one)
    os.chdir(folder)
    return folder / target.file


def _peak(reset: bool = False) -> int:
    """Return the peak resident memory in bytes since the last reset; reset it first if `reset` is set."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def child(kind: str, target: Any, start: int, count: int, out: int, folder: Path) -> None:
    """Read the damaged files of one kind, and write a line of JSON to a pipe before and after each file.

    Args:
        kind: kind of the files.
        target: description of this kind, see `Target`.
        start: number of the first damaged file to read.
        count: number of damaged files in all.
        out: descriptor of the pipe.
        folder: folder for the files.
    """
    from tests.faults.mutations import damages

    warnings.simplefilter("ignore")
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    sound = target.read(place(target, target.content, folder))
    for number, (what, content) in enumerate(
        damages(target.content, target.special, count, (SEED, zlib.crc32(kind.encode())))
    ):
        if number >= start:
            os.write(out, (json.dumps({"begin": number, "what": what[:300]}) + "\n").encode())
            os.write(
                out,
                (json.dumps(asdict(look(kind, target, number, what[:300], content, sound, folder))) + "\n").encode(),
            )


def watch(kind: str, target: Any, count: int, folder: Path) -> list[Outcome]:
    """Run child processes until all damaged files of a kind have been read; return the outcomes."""
    found: list[Outcome] = []
    while len(found) < count:
        receive, send = os.pipe()
        process = os.fork()
        if process == 0:
            status = 1
            try:
                os.close(receive)
                child(kind, target, len(found), count, send, folder / "work")
                status = 0
            finally:
                os._exit(status)
        os.close(send)
        begun = _listen(kind, process, receive, found)
        os.close(receive)
        if begun is None and len(found) < count:
            found.append(Outcome(kind, len(found), "the sound file", "died", "the child ended without a word"))
            break
    return found


def _listen(kind: str, process: int, receive: int, found: list[Outcome]) -> dict[str, Any] | None:
    """Read a child's lines until it ends, and kill it if it hangs or needs too much memory.

    Args:
        kind: kind of the files.
        process: process id of the child.
        receive: descriptor of the pipe.
        found: list to which outcomes are appended.

    Returns:
        Number and damage of the file during which the child ended; None if it finished all files that it had begun.
    """
    text, begun, since, spent, floor = b"", None, time.monotonic(), _spent(process), _resident(process)
    why = "died"
    while True:
        ready, _, _ = select.select([receive], [], [], 0.05)
        if ready:
            block = os.read(receive, 65536)
            if not block:
                break
            text += block
            *lines, text = text.split(b"\n")
            for line in lines:
                plain = json.loads(line)
                begun = plain if "begin" in plain else None
                if begun is None:
                    found.append(Outcome(**plain | {"seconds": round(_spent(process) - spent, 2)}))
                since, spent, floor = time.monotonic(), _spent(process), _resident(process)
        elif begun is not None:
            swollen = _resident(process) - floor > 1.25 * SPIKE
            if swollen or _spent(process) - spent > SECONDS or time.monotonic() - since > PATIENCE:
                why = "memory" if swollen else "hang"
                os.kill(process, signal.SIGKILL)
                break
    os.waitpid(process, 0)
    if begun is not None:
        found.append(Outcome(kind, begun["begin"], begun["what"], why))
    return begun


def _spent(process: int) -> float:
    """Return the processor seconds of a process, in user and kernel mode; 0 if it has ended."""
    try:
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


def _resident(process: int) -> int:
    """Return the resident memory of a process in bytes; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def warm() -> None:
    """Import the libraries that readers need, before the first fork."""
    import cv2
    import nibabel
    import pandas
    import pydicom
    import safetensors.torch
    import torch
    from PIL import Image, PngImagePlugin  # noqa: F401

    import competition.data.preprocessing
    import competition.dicom
    import competition.runs.checkpoint
    import competition.runs.run  # noqa: F401

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    pandas.DataFrame()
    assert nibabel and pydicom and safetensors


def main() -> None:
    """Read the damaged files of the requested kinds, and write the outcomes as lines of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--times", type=int, default=1, help="so many times as many files as usual")
    words = parser.parse_args()
    warm()
    out = words.out.resolve()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        every = targets(Path(name))
        with open(out, "w") as file:
            for kind in words.kinds or every:
                began = time.monotonic()
                for one in watch(kind, every[kind], every[kind].count * words.times, Path(name)):
                    file.write(json.dumps(asdict(one)) + "\n")
                print(f"{kind}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
        os.chdir("/")


if __name__ == "__main__":
    main()
