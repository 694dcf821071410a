"""Every option of training: frozen dataclasses, filled from one TOML recipe.

Every difference between two runs is a field here. A recipe names each field that it sets; an
unknown key, a value of another type, or a number out of its range (`recipe_checks`) is an error;
the last of a recipe that is built in Python, too.
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import dacite

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.skeleton import Skeleton
from cfpose_sdk.spec import Decode, Evidence, Start
from cfpose_training.fit_steps import FitConfig
from cfpose_training.nets.efficientnet import LiteConfig
from cfpose_training.nets.finder import FinderNetConfig
from cfpose_training.nets.hrnet import HRNetConfig
from cfpose_training.nets.igp_gcn import OutputKind, RefineMode, SampleAt
from cfpose_training.nets.movenet import MoveNetConfig
from cfpose_training.nets.pose_net import BackboneConfig, HeadName
from cfpose_training.recipe_checks import out_of_range, unknown_options, wrong_value
from cfpose_training.skeletons import MAX_JOINTS, named_skeleton

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class OptimConfig:
    """One optimisation run. `schedule`: multistep divides lr by 10 at each milestone epoch."""

    epochs: int
    batch_size: int = 128
    optimiser: Literal["adam", "adamw"] = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0  # adamw: not on norms and biases
    schedule: Literal["multistep", "cosine"] = "multistep"
    milestones: tuple[int, ...] = (170, 200)
    warmup_steps: int = 0
    final_lr: float = 0.0  # cosine
    cosine_from: float = 0.0  # the cosine begins after this share of the epochs, lr before
    mild_epochs: int = 0  # the last epochs, augmented as the recipe's [mild_augment] says
    clip_norm: float = 0.0  # gradient norm; 0: off
    ema_decay: float = 0.0  # 0: off
    precision: Precision = "32-true"  # 16-mixed: float16, with a scaler of its gradients
    accumulate: int = 1  # parts of a batch, one after the other; batch_size is that of all
    channels_last: bool = True  # the maps in memory, pixel by pixel; false: channel by channel
    compile: bool = False  # by torch.compile; the first batches take minutes
    checkpointing: bool = False  # HRNet's maps are computed anew in the backward pass, not kept
    seed: int = 2025
    workers: int = 0  # loader processes


@dataclass(frozen=True)
class PhotoSource:
    """Photos for the finder, with COCO boxes where there are any; paths below the data root."""

    name: str
    images: str
    annotations: str = ""
    empty: bool = False  # no people are in these photos: every detection there is false
    repeat: int = 1
    holdout_every: int = 0  # 1: all of them
    files: str = "*"  # only photos whose name fits this pattern


@dataclass(frozen=True)
class FinderAugmentConfig:
    """Random view of a photo: mirrored, zoomed about its letterbox, shifted, brightness changed."""

    flip_p: float = 0.5
    zoom: tuple[float, float] = (0.6, 1.8)
    contrast: float = 0.3  # pixel values are scaled by 1 ± this
    brightness: float = 30.0  # and moved by up to this, of 255
    mosaic_p: float = 0.0  # share of letterboxes that four photos divide among them


@dataclass(frozen=True)
class FinderConfig:
    """The person finder: network, letterbox, labels and run."""

    name: str
    optim: OptimConfig
    sources: tuple[PhotoSource, ...]
    net: FinderNetConfig = field(default_factory=FinderNetConfig)
    augment: FinderAugmentConfig = field(default_factory=FinderAugmentConfig)
    size_wh: tuple[int, int] = (320, 320)  # of the training letterboxes
    deploy_size_wh: tuple[int, int] = (0, 0)  # of the artifact's; zeros: as in training
    label_score: float = 0.4  # boxes of the labelling detector count from this score on
    ignore_score: float = 0.1  # between the two they are neither person nor background
    threshold: float = 0.74  # of the fourth root of the heat; written into the artifact
    nms_iou: float = 0.5
    trained_on: tuple[str, ...] = ()
    license: str = ""
    started_from: tuple[Start, ...] = ()  # as in Recipe

    @property
    def artifact_size_wh(self) -> tuple[int, int]:
        """Letterbox of the artifact, and of the figures on held-out photos."""
        return self.deploy_size_wh if any(self.deploy_size_wh) else self.size_wh


# hrnet: boxes and mirrored crops to the pixel as HRNet's and SimCC's training has them; see
# `people.clipped_box` and `augment.random_transform`
Arithmetic = Literal["cfpose", "hrnet"]
LimbWeights = Literal["uniform", "inv_sigma", "inv_length", "inv_var"]
GcnTarget = Literal["off", "gt", "teacher", "mix"]


@dataclass(frozen=True)
class Source:
    """One COCO-format annotation file and its photos; paths relative to the data root."""

    name: str
    annotations: str
    images: str
    repeat: int = 1  # how often an epoch visits each person
    holdout_every: int = 0  # photos with id % holdout_every == 0 are kept for development; 0: none
    files: str = "*"  # only photos whose file_name fits this pattern


@dataclass(frozen=True)
class AugmentConfig:
    """SimCC's augmentation (METHOD: HRNet's JointsDataset). Probabilities are per sample."""

    flip_p: float = 0.5
    zoom_sigma: float = 0.35  # the box is scaled by clip(1 + sigma * N, 1 - sigma, 1 + sigma)
    rotation_p: float = 0.6
    rotation_sigma_deg: float = 45.0  # clipped at twice this
    half_body_p: float = 0.3
    half_body_min_joints: int = 8  # more labelled joints than this, or no half-body crop
    dropout_p: float = 0.0  # coarse dropout: one black rectangle in the crop
    dropout_side: tuple[float, float] = (0.2, 0.4)  # least and greatest share of the crop's sides
    contrast: float = 0.0  # pixel values are scaled by 1 ± this, each colour channel by its own
    brightness: float = 0.0  # and moved by up to this, of 255, likewise
    box_sigma: float = 0.0  # each edge of the box is off, by this share of the box's side
    turn_p: float = 0.0  # turned by any angle instead: handstands and people lying down


@dataclass(frozen=True)
class LabelConfig:
    """SimCC targets and their loss.

    `smoothed`: SimDR's label-smoothed KL, summed over bins and joints (the paper's default).
    `gaussian_mean`: SimDR*'s unnormalised Gaussian, averaged over bins.
    `gaussian`: normalised Gaussian, KL summed over bins, averaged over labelled joints.
    `gaussian_softmax`: softmax of softmax_beta times a Gaussian of height 1 (RTMPose), the KL
    reduced as for `gaussian`.
    """

    kind: Literal["smoothed", "gaussian_mean", "gaussian", "gaussian_softmax"] = "smoothed"
    epsilon: float = 0.1  # smoothed
    sigma_bins: float | tuple[float, float] = 4.0  # the Gaussians; two: along x and along y
    softmax_beta: float = 1.0  # of the logits too; the saved head is multiplied by it

    @property
    def sigma_xy(self) -> tuple[float, float]:
        """Deviation in bins along x and along y."""
        sigma = self.sigma_bins
        return sigma if isinstance(sigma, tuple) else (sigma, sigma)


@dataclass(frozen=True)
class DistillConfig:
    """Stage-1 distillation, with eq. (1) and (2): L_KL + gamma (alpha L_fea + beta (L1 + L_cst)).

    Poses are in crop pixels; each term is summed over joints and averaged over crops, which is the
    scale of `smoothed` labels. Labels whose KL is a mean over joints need alpha, beta and
    logit_weight divided by the number of labelled joints.
    """

    kd_fea: bool = False  # L_fea: last 1/4 map through a 1x1 convolution
    kd_l1: bool = False  # L1 of soft-argmax poses
    kd_cst: bool = False  # L_cst: limb lengths
    kd_logit: bool = False  # KL of the bins themselves, over all joints; not in the paper
    alpha: float = 5e-5
    # > 0: epoch 1 sets alpha so that, at the student's map, the gradient of alpha L_fea is this
    # share of the KL's; the mean over its first batches stays for the rest of the run
    alpha_auto: float = 0.0
    beta: float = 0.1
    fea_reduction: Literal["sum", "mean"] = "sum"  # mean: eq. (1) to the letter; then 5e-5 is inert
    tau: float = 2.0  # of both soft-argmaxes
    cst_weights: LimbWeights = "uniform"  # w_ij, mean 1; the paper does not define them
    cst_form: Literal["length", "vector"] = "length"  # vector: direction counts too
    logit_weight: float = 0.1
    teacher_flip: bool = False  # poses and bins: mean probability of the crop and its mirror image
    teacher_confidence: bool = False  # L1, L_cst: joints weigh as the teacher is sure of them
    teacher_bf16: bool = False  # its forward pass; faster on CPUs with AVX512-BF16 and on GPUs

    @property
    def active(self) -> bool:
        """Whether any term needs a teacher."""
        return self.kd_fea or self.kd_l1 or self.kd_cst or self.kd_logit


@dataclass(frozen=True)
class PoseConfig:
    """The student: network, crop and decoder. Its backbone is one of `hrnet`, `lite`, `movenet`."""

    name: str
    hrnet: HRNetConfig | None = None
    lite: LiteConfig | None = None
    movenet: MoveNetConfig | None = None
    head: HeadName = "simcc"
    arithmetic: Arithmetic = "cfpose"  # of the boxes and mirrored crops that it learns from
    size_wh: tuple[int, int] = (192, 256)
    split_ratio: float = 2.0
    box_scale: float = 1.25  # of the training crops
    deploy_box_scale: float = 0.0  # of the artifact's crops; 0: as in training
    decode: Decode = "argmax"
    oks_window: float = 0.0  # of the artifact's decoder, see ModelSpec; not in stage 1
    evidence: Evidence = "peak"  # of the artifact's confidence, see ModelSpec; not while training
    spread_temperature: float = 1.0  # of the artifact's covariance, see ModelSpec; as above
    spread_isotropy: float = 0.0
    head_init: Literal["default", "marginals"] = "default"  # see SimCCHead.init_as_marginals

    @property
    def backbone(self) -> BackboneConfig:
        """The one that is given."""
        return _the_one(self)


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher: a larger network of the same crop, skeleton and decoder, trained on labels."""

    name: str
    hrnet: HRNetConfig | None = None
    lite: LiteConfig | None = None
    movenet: MoveNetConfig | None = None
    head: HeadName = "simcc"
    optim: OptimConfig | None = None  # None: as stage1
    head_init: Literal["default", "marginals"] = "default"

    @property
    def backbone(self) -> BackboneConfig:
        """The one that is given."""
        return _the_one(self)


def _backbones(network: PoseConfig | TeacherConfig) -> list[BackboneConfig]:
    return [b for b in (network.hrnet, network.lite, network.movenet) if b is not None]


def _the_one(network: PoseConfig | TeacherConfig) -> BackboneConfig:
    given = _backbones(network)
    if len(given) != 1:
        raise TrainingError(
            "a network has one backbone: give `hrnet`, `lite` or `movenet`, and no other"
        )
    return given[0]


@dataclass(frozen=True)
class RefinerConfig:
    """Stage 2: widths of the refiner (IGP-GCN), its target and its loss (eq. 6-7)."""

    optim: OptimConfig
    gcn: GcnTarget = "gt"  # what it learns; off: an ablation trains no refiner
    teacher_fraction: float = 0.5  # mix: this share of the loss is the teacher's
    teacher_flip: bool = False  # its pose: of the mean probability of the crop and its mirror image
    teacher_confidence: bool = False  # its joints weigh as it is sure of them
    node_channels: int = 128
    joint_channels: tuple[int, int, int] = (256, 128, 128)
    output: OutputKind = "absolute"
    output_weights: tuple[float, float, float] = (0.3, 0.5, 1.0)
    loss: Literal["l1", "oks"] = "l1"  # oks: not in the paper; see `losses.refinement_oks_loss`
    sample_at: SampleAt = "initial"
    refine: RefineMode = "all"  # low_conf: only joints scored below `refine_below` are replaced
    refine_below: float = 0.0  # raw score
    init_noise_px: float = 0.0  # Gaussian noise on the coarse pose, in training only


@dataclass(frozen=True)
class Recipe:
    """A whole training recipe."""

    pose: PoseConfig
    stage1: OptimConfig
    stage2: RefinerConfig
    sources: tuple[Source, ...]
    skeleton: str = ""  # a name of `skeletons.NAMED`, or a JSON file beside the recipe
    joints: Skeleton | None = None  # what `skeleton` names; both absent: as the annotations have it
    teacher: TeacherConfig | None = None
    distill: DistillConfig = field(default_factory=DistillConfig)
    finder: FinderConfig | None = None
    fit: FitConfig = field(default_factory=FitConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mild_augment: AugmentConfig | None = None  # of each run's last `mild_epochs`
    trained_on: tuple[str, ...] = ()
    license: str = ""
    # imagenet: teacher and student need the weights of --init, or --from-scratch in their place
    start: Literal["any", "imagenet"] = "any"
    # files of others that --init takes, known by their SHA-256: their names, sources and terms
    started_from: tuple[Start, ...] = ()

    def __post_init__(self) -> None:
        """The same checks for a recipe of a file and one built in Python. Raises TrainingError."""
        if problem := next(out_of_range(self), "") or _contradiction(self):
            raise TrainingError(problem)


def load_recipe(path: str | Path) -> Recipe:
    """Read a TOML recipe. Raises TrainingError naming the file and the offending key."""
    try:
        # utf-8-sig: Windows' editors begin a file with a byte order mark
        table = tomllib.loads(Path(path).read_bytes().decode("utf-8-sig").replace("\r\n", "\n"))
        if {"skeleton", "joints"} <= table.keys():
            raise TrainingError("both skeleton and [joints] say which joints it has; give one")
        if unknown := "; ".join(unknown_options(table, Recipe)):
            raise TrainingError(unknown)
        recipe = dacite.from_dict(Recipe, table, dacite.Config(strict=True, cast=[tuple]))
    except dacite.WrongTypeError as error:
        raise TrainingError(f"the recipe {path} is not usable: {wrong_value(error)}") from error
    except OSError as error:
        raise TrainingError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (
        TrainingError, TypeError, ValueError, RecursionError, dacite.DaciteError
    ) as error:  # fmt: skip
        raise TrainingError(f"the recipe {path} is not usable: {error}") from error
    if recipe.skeleton:
        joints = named_skeleton(recipe.skeleton, Path(path).parent)
        recipe = dataclasses.replace(recipe, joints=joints)
    return recipe


def _contradiction(recipe: Recipe) -> str:
    """The first problem of options that do not fit together; empty when there is none."""
    if recipe.joints is not None and len(recipe.joints) > MAX_JOINTS:
        return f"[joints] has {len(recipe.joints)} joints, expected 1 to {MAX_JOINTS}"
    networks: list[PoseConfig | TeacherConfig] = [recipe.pose]
    if recipe.teacher is not None:
        networks.append(recipe.teacher)
    for network in networks:
        if len(_backbones(network)) != 1:
            return (
                f"{network.name} has one backbone: give `hrnet`, `lite` or `movenet`, and no other"
            )
    runs = {"stage1": recipe.stage1, "stage2.optim": recipe.stage2.optim}
    if recipe.teacher is not None and recipe.teacher.optim is not None:
        runs["teacher.optim"] = recipe.teacher.optim
    for name, optim in runs.items():
        if optim.batch_size % optim.accumulate:
            return f"{name}: batch_size {optim.batch_size} has no {optim.accumulate} equal parts"
        if optim.compile and optim.checkpointing:
            return f"{name}: compile and checkpointing do not go together; leave one of them false"
        if optim.mild_epochs and recipe.mild_augment is None:
            return f"{name}.mild_epochs is {optim.mild_epochs}; give [mild_augment], or leave it 0"
    if recipe.finder is not None:
        runs["finder.optim"] = recipe.finder.optim
        if recipe.finder.optim.mild_epochs:
            return "finder.optim.mild_epochs: the finder has one augmentation; leave it 0"
        low, high = recipe.finder.augment.zoom
        if low > high:
            return f"finder.augment.zoom is ({low}, {high}), expected two rising factors"
    for augment in filter(None, (recipe.augment, recipe.mild_augment)):
        low, high = augment.dropout_side
        if not 0 < low <= high <= 1:
            return f"dropout_side is ({low}, {high}), expected two rising shares of (0, 1]"
    return ""


def teacher_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the teacher: its network in the student's place, labels only.

    Raises TrainingError when the recipe has no [teacher].
    """
    teacher = recipe.teacher
    if teacher is None:
        raise TrainingError("the recipe has no [teacher] table; give its name and network there")
    pose: PoseConfig = dataclasses.replace(
        recipe.pose, name=teacher.name, hrnet=teacher.hrnet, lite=teacher.lite,
        movenet=teacher.movenet, head=teacher.head,
        head_init=teacher.head_init,
    )  # fmt: skip
    return dataclasses.replace(
        recipe, pose=pose, stage1=teacher.optim or recipe.stage1, distill=DistillConfig()
    )
