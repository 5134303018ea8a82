"""Break files in many ways and check how they are read: `python -m tests.faults.fuzz OUT.jsonl [KIND …] [--times 10]`.

One process imports everything, then forks for each kind of file, so that hundreds of files cost seconds. A child that
hangs or swells is killed from outside, noted, and followed by another one that goes on with the next file.
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

SECONDS = 10.0  # of a processor, so that a busy machine is no hang
PATIENCE = 180.0  # s by the clock, for what waits instead of working
SPIKE = 2 * 2**30  # bytes above what was resident before
SEED = 20
GOOD = ("refused", "same", "agrees")


@dataclass(frozen=True)
class Outcome:
    """What came of one broken file.

    Attributes:
        kind, number, what: which file, and what was done to it.
        verdict: refused (an error that names file and cure), same (it reads as before), agrees (another decoder reads
            the same), or a failure: traceback, nameless, wrong, hang, memory, died.
        words: of the error.
        spike: bytes that were resident at most, above what was before.
        seconds: of a processor.
    """

    kind: str
    number: int
    what: str
    verdict: str
    words: str = ""
    spike: int = 0
    seconds: float = 0.0


def targets(folder: Path) -> dict[str, Any]:
    """All kinds of files."""
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
    """Whether two results are equal, arrays to their last bit but for rounding of affines."""
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
    """A word of YAML as a number or nothing."""
    if text in ("", "~") or text.casefold() == "null":
        return None
    try:
        return int(text.replace("_", ""), 0) if text.lower().lstrip("+-").startswith("0x") else float(text)
    except ValueError:
        return text


def look(kind: str, target: Any, number: int, what: str, content: bytes, sound: Any, folder: Path) -> Outcome:
    """Writes one broken file, reads it, and judges."""
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
    """The file in a fresh folder, with what belongs beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, one in {**target.beside, target.file: content}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(one)
    os.chdir(folder)
    return folder / target.file


def _peak(reset: bool = False) -> int:
    """Resident bytes at most since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def child(kind: str, target: Any, start: int, count: int, out: int, folder: Path) -> None:
    """The broken files of one kind from a number on; a line before each, and one after."""
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
    """Runs children until all files of a kind were looked at."""
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
    """Collects a child's lines; kills it when it hangs or swells. Returns the file that it died of."""
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
    """Seconds of a processor, in the process and in the kernel."""
    try:
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def warm() -> None:
    """Imports what readers need, before the first fork."""
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
