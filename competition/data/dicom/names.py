"""Case ids from PatientID: unique, stable, safe as file names, without the patient's name."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter

from competition.data.dicom.privacy import reveals
from competition.data.dicom.series import Series

LONGEST = 60


def clean(text: str) -> str:
    """Letters, digits, `_` and `-` only; empty where nothing of that is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "_", plain).strip("_-")[:LONGEST]


def short(text: str) -> str:
    """Six hexadecimal digits that follow from a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def patients(series: list[Series]) -> dict[str, str]:
    """Names the patient of each series.

    Args:
        series: of the folder.

    Returns:
        SeriesInstanceUID → a clean PatientID. Six digits follow where two PatientIDs look alike once cleaned; they stand
        alone (`patient_1a2b3c`) where PatientID is empty (then per study), or holds the patient's name or a date.
    """
    raw = {one.uid: one.first.patient or one.first.study for one in series}
    named = {}
    for one in series:
        base = clean(one.first.patient)
        if not base or reveals(one.first.patient, one.private) or "^" in one.first.patient:
            base = f"patient_{short(raw[one.uid])}"
        named[one.uid] = base
    owners: dict[str, set[str]] = {}
    for uid, base in named.items():
        owners.setdefault(base.casefold(), set()).add(raw[uid])  # P1 and p1 are one file on some disks
    return {uid: f"{base}_{short(raw[uid])}" if len(owners[base.casefold()]) > 1 else base for uid, base in named.items()}


def case_ids(series: list[Series], patient: dict[str, str], known: dict[str, str], taken: set[str]) -> dict[str, str]:
    """Names the image series.

    Args:
        series: the image series of the folder, faulty ones too, so that a repaired series changes no other's id.
        patient: by `patients`.
        known: SeriesInstanceUID → the id of an earlier conversion, which stays.
        taken: ids of other series of earlier conversions.

    Returns:
        SeriesInstanceUID → id: the patient; `_st` and six digits of the study where the patient has several studies;
        `_s` and SeriesNumber where the patient has several series; six digits of the series where that is not unique.
    """
    per_patient = Counter(patient[one.uid] for one in series)
    studies: dict[str, set[str]] = {}
    for one in series:
        studies.setdefault(patient[one.uid], set()).add(one.first.study)
    named = {}
    for one in series:
        owner = patient[one.uid]
        study = f"_st{short(one.first.study)}" if len(studies[owner]) > 1 else ""
        number = clean(one.first.series_number) or f"x{short(one.uid)}"
        named[one.uid] = f"{owner}{study}_s{number}" if per_patient[owner] > 1 else owner
    named |= {uid: known[uid] for uid in named if uid in known}
    used = Counter(one.casefold() for one in named.values()) + Counter(one.casefold() for one in taken)
    return {uid: one if used[one.casefold()] == 1 or uid in known else f"{one}_{short(uid)}" for uid, one in named.items()}
