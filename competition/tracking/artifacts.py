"""Store weights as MLflow artifacts without a second copy on disk, as hard links if the store is a local folder.

A hard link shares its content with the file in the run's folder. If that file were changed in place, the artifact would
change too. So only files that are always replaced, e.g. by `competition.io.atomic_write`, are linked.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

LINKED_SUFFIXES = (".safetensors", ".pt")  # these files are replaced and never changed in place


class ArtifactFolders:
    """Log artifacts of MLflow runs, as hard links if the store is a local folder.

    For each run, MLflow is asked only once where the artifacts are; this object stores the answer.

    Args:
        client: client of the open store.
    """

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self._folders: dict[str, Path | None] = {}

    def folder(self, run_id: str) -> Path | None:
        """Return the local folder with the artifacts of an MLflow run; None if they are not in a local folder."""
        if run_id not in self._folders:
            self._folders[run_id] = local_folder(self._client.get_run(run_id).info.artifact_uri)
        return self._folders[run_id]

    def log(self, run_id: str, path: Path, parent: str | None) -> None:
        """Log a file as an artifact.

        Files with a suffix in `LINKED_SUFFIXES` become hard links, if the file system allows this. All other files are
        copied.

        Args:
            run_id: MLflow's id of the run.
            path: path of the file.
            parent: folder among the run's artifacts; None for the root.

        Raises:
            FileNotFoundError: the file does not exist any more.
            Exception: any exception of MLflow if the store cannot be reached.
        """
        if path.suffix in LINKED_SUFFIXES and (folder := self.folder(run_id)) is not None:
            target = folder / (parent or "") / path.name
            if link_file(path, target):
                return
            # Remove the existing file first: it may be a link to weights that are in use, and MLflow would write the
            # copy into it.
            target.unlink(missing_ok=True)
        self._client.log_artifact(run_id, str(path), parent)


def local_folder(artifact_uri: str) -> Path | None:
    """Return the local folder of an artifact URI, e.g. `file:///home/me/mlruns/artifacts/…`.

    If the URI does not name a local folder, e.g. `s3://…`, return None.
    """
    from urllib.request import url2pathname  # also imports HTTP and SSL, which a finished run does not need

    parsed = urlparse(artifact_uri)
    return Path(url2pathname(parsed.path)) if parsed.scheme in ("", "file") and not parsed.netloc else None


def link_file(source: Path, target: Path) -> bool:
    """Make `target` a hard link to a file; an existing `target` is replaced.

    Returns:
        True if `target` is now a link; False if the link could not be made, e.g. between two file systems.

    Raises:
        FileNotFoundError: the source does not exist.
    """
    source = source.resolve(strict=True)  # a hard link to a symbolic link would not preserve the content
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and target.samefile(source):
            return True
        target.unlink(missing_ok=True)
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # the target is on another file system, without hard links, or belongs to another user
        return False
    return True
