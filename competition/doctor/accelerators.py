"""GPUs that torch can use, and why it cannot use those that are there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from competition.doctor.child import ask
from competition.doctor.finding import Finding, first_line
from competition.doctor.packages import version_of

GIB = 2**30
WORDS = {"bf16": "bf16 natively", "fp16": "no bf16 natively, so precision: auto is fp16", "fp32": "fp32"}


def look() -> list[Finding]:
    """A row for each device; one row where there is none."""
    if version_of("torch") is None:
        return [Finding("accelerators", "warning", "unknown, since torch is not installed", "Install torch first.")]
    answer = ask("accelerators")
    if not answer.lines:
        return [Finding("accelerators", "warning", f"torch does not say: {answer.trouble}", "See the row of torch.")]
    build, *devices = answer.lines
    rows = [_device(row) for row in devices]
    if answer.trouble is not None:
        rows.append(
            Finding(
                "accelerators",
                "unusable",
                f"looking at them failed: {answer.trouble}",
                "Set run.accelerator=cpu, or mend the driver.",
            )
        )
    elif build["available"] and not devices:
        rows.append(Finding("accelerators", "warning", "torch sees CUDA and no device", "Check CUDA_VISIBLE_DEVICES."))
    if build["mps"]:
        rows.append(Finding("MPS", "ok", "Apple's GPU; fp32"))
    return rows or [_none(build)]


def _device(row: dict[str, Any]) -> Finding:
    what = f"cuda:{row['device']}"
    major, minor = row["capability"]
    found = f"{row['name']}, {row['total'] / GIB:.1f} GiB, compute capability {major}.{minor}"
    if "error" in row or not row.get("right"):
        why = first_line(row.get("error", "it computes wrongly"))
        return Finding(
            what,
            "unusable",
            f"{found}, cannot compute: {why}",
            "Install a torch that is built for it (https://pytorch.org), or set run.accelerator=cpu.",
        )
    found += f", {row['free'] / GIB:.1f} GiB free, {WORDS.get(row['precision'], 'precision unknown')}"
    if row["free"] < row["total"] / 4:
        return Finding(what, "warning", found, "Another program holds most of its memory; see nvidia-smi.")
    return Finding(what, "ok", found)


def _none(build: dict[str, Any]) -> Finding:
    """Why there is no device."""
    found = f"none; training on the CPU ({WORDS.get(build['cpu'], 'precision unknown')}, torch takes {build['threads']} threads)"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not driver_there():
        return Finding("accelerators", "ok", found)
    if build["cuda"] is None and build["hip"] is None:
        return Finding(
            "accelerators",
            "warning",
            f"an NVIDIA driver is there, but torch {build['torch']} is built without CUDA; {found}",
            "Install a CUDA build of torch and torchvision: see https://pytorch.org.",
        )
    if hidden is not None and hidden.strip() in ("", "-1"):
        return Finding(
            "accelerators", "warning", f"hidden by CUDA_VISIBLE_DEVICES={hidden!r}; {found}", "Unset it to use them."
        )
    reason = f": {first_line(build['reason'])}" if build["reason"] else ""
    return Finding(
        "accelerators",
        "warning",
        f"an NVIDIA driver is there, but CUDA does not start{reason}; {found}",
        f"Update the driver, or install a torch for an older CUDA than {build['cuda']}.",
    )


def driver_there(version: Path = Path("/proc/driver/nvidia/version")) -> bool:
    """Whether NVIDIA's driver is installed."""
    return version.exists() or shutil.which("nvidia-smi") is not None
