"""What is around the packages: git, and that nothing phones home."""

from __future__ import annotations

import os
import shutil
import subprocess

from competition.doctor.child import ask
from competition.doctor.finding import Finding
from competition.doctor.packages import version_of

ON = {"0", "false", "no", "off", ""}  # of a variable that switches something off


def look() -> list[Finding]:
    """Rows for git and for telemetry."""
    return [git(), telemetry()]


def git() -> Finding:
    """Runs are kept with their commit and changes."""
    found = shutil.which("git")
    if found is None:
        return Finding(
            "git", "warning", "is not installed, so runs are kept without their commit and changes", "Install git."
        )
    try:
        answer = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("git", "warning", f"{found} does not run: {type(error).__name__}", "Install git again.")
    return Finding("git", "ok", answer.stdout.strip().removeprefix("git version "))


def telemetry() -> Finding:
    """Of MLflow, Ray and albumentations: ours to switch off, yours to switch on again."""
    talking = [
        f"albumentations (NO_ALBUMENTATIONS_UPDATE={os.environ['NO_ALBUMENTATIONS_UPDATE']})"
        for _ in range(1)
        if os.environ.get("NO_ALBUMENTATIONS_UPDATE", "1").lower() in ON
    ]
    if version_of("mlflow") is not None:
        answer = ask("telemetry")
        if any(line.get("mlflow") for line in answer.lines):
            talking.append("MLflow")
    if talking:
        return Finding(
            "telemetry", "warning", f"on: {', '.join(talking)}", "Set NO_ALBUMENTATIONS_UPDATE=1 and DO_NOT_TRACK=true."
        )
    return Finding("telemetry", "ok", "off: MLflow, Ray, albumentations")
