"""Write the files that turn a bundle into a container for Grand Challenge.

The files are a Dockerfile, an entry point, and a file with the names of the sockets (Grand Challenge's name for inputs
and outputs).
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from competition.config.competition import Competition
from competition.errors import MaskfoldError
from competition.export.grand_challenge import CONTAINER_FILE
from competition.records import write_json
from competition.submission.label_files import region_values

CONTAINERS = ("grand-challenge",)
SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
ENTRY_MODULE = "competition.export.grand_challenge"
ENTRY_SCRIPT = "process.py"
ITK_PACKAGE = "SimpleITK"

DOCKERFILE = """\
# Build:  docker build -t {tag} {platform}.
# Try:    docker run --rm --network none -v $PWD/test/input:/input:ro -v $PWD/test/output:/output {tag}
# Upload: docker save {tag} | gzip -c > {tag}.tar.gz
FROM pytorch/pytorch:{torch}-cuda12.6-cudnn9-runtime
RUN groupadd -r user && useradd -m --no-log-init -r -g user user
WORKDIR /opt/app
COPY --chown=user:user requirements.txt /opt/app/
RUN grep -v -i -E '^(torch|torchvision|triton|nvidia-|cuda-)' requirements.txt > packages.txt \\
    && python -m pip install --no-cache-dir --no-deps -r packages.txt {itk}
COPY --chown=user:user . /opt/app/
USER user
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["python", "process.py"]
"""


def check_container(
    container: str | None, comp: Competition, input_slug: str | None = None, output_slug: str | None = None
) -> None:
    """Check that the files of a container can be written for a competition.

    Args:
        container: kind of the container; None if no container will be written, so that nothing is checked.
        comp: the competition.
        input_slug: name of the input socket; None if the algorithm has a single input of images.
        output_slug: name of the output socket; None for the name of the competition.

    Raises:
        MaskfoldError: the kind of container is unknown, the name of a socket is not valid, SimpleITK is missing, the
            channels of an image are in several files, or overlapping classes cannot be written into one label file
            (status 2).
    """
    if container is None:
        return
    for option, slug in (("--input-slug", input_slug), ("--output-slug", output_slug)):
        # The slug becomes the name of a folder, so a text such as `../..` would lead out of the container's folders.
        if slug is not None and not SLUG.fullmatch(slug):
            raise MaskfoldError(
                f"{option}: found {slug!r}, expected lower-case letters, digits and single hyphens only.",
                f"Copy the slug of the input or output from Grand Challenge, for example {option} ct-image.",
                status=2,
            )
    if container not in CONTAINERS:
        raise MaskfoldError(
            f"--container: found {container}, expected {', '.join(CONTAINERS)}.",
            f"Set --container {CONTAINERS[0]}.",
            status=2,
        )
    patterns = [comp.train.images] if isinstance(comp.train.images, str) else list(comp.train.images.values())
    if len(patterns) > 1 or "{c}" in patterns[0]:
        count = f"{len(patterns)} " if len(patterns) > 1 else ""
        raise MaskfoldError(
            f"--container: the images have {count}channels in separate files, expected one file per image.",
            "Join the channels in one file, or write your own entry point that calls the bundle.",
            status=2,
        )
    if comp.labels == "overlapping" and len(comp.classes) > 1:
        region_values(
            comp,
            "--container",
            "The container writes one label file per image. To write a file for each class, export without "
            "--container, and write your own entry point that calls the bundle.",
        )
    try:
        import SimpleITK  # noqa: F401
    except ImportError as error:
        raise MaskfoldError(
            "--container requires SimpleITK to read and write MHA files, but SimpleITK is not installed.",
            "Install SimpleITK: pip install SimpleITK.",
            status=2,
        ) from error


def write_container(folder: Path, comp: Competition, input_slug: str | None, output_slug: str | None) -> None:
    """Write the Dockerfile, the entry point and `container.json` into a bundle.

    Args:
        folder: folder of the bundle.
        comp: the competition.
        input_slug: name of the input socket; None if the algorithm has a single input of images.
        output_slug: name of the output socket; None for the name of the competition.
    """
    import torch

    torch_version = torch.__version__.partition("+")[0]
    tag = comp.name.lower()
    text = DOCKERFILE.format(
        tag=tag,
        platform="--platform linux/amd64 ",
        torch=torch_version,
        itk=f"{ITK_PACKAGE}=={metadata.version(ITK_PACKAGE)}",
    )
    (folder / "Dockerfile").write_text(text, encoding="utf-8")
    # Docker must not ignore any file of the manifest, because the entry point checks all of them.
    (folder / ".dockerignore").write_text("test\n", encoding="utf-8")
    script = Path(__file__).with_name("run_script.py").read_text(encoding="utf-8")
    if "competition.export.runtime import" not in script:
        raise ValueError("run_script.py no longer imports competition.export.runtime")
    script = script.replace(
        "from competition.export.runtime import main as run", f"from {ENTRY_MODULE} import main as run"
    )
    (folder / ENTRY_SCRIPT).write_text(script, encoding="utf-8")
    write_json(folder / CONTAINER_FILE, {"input": input_slug, "output": output_slug or comp.name.lower()})
