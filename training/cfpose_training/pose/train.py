"""Train teacher, student and refiner: from a recipe to a checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.spec import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB, ModelSpec
from cfpose_training.checkpoints.convert import Initialised, initialise, load_network
from cfpose_training.checkpoints.files import load_pose, save_pose
from cfpose_training.checkpoints.heatmap_graph import HeatmapGraph
from cfpose_training.checkpoints.initial import is_own_graph
from cfpose_training.checkpoints.starts import inherited, starts_of
from cfpose_training.config import GcnTarget, Recipe, teacher_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.data.photo_cache import cache_photos
from cfpose_training.nets.igp_gcn import IGPGCN, IGPGCNConfig
from cfpose_training.nets.movenet import MOVENET_MEAN_RGB, MOVENET_STD_RGB
from cfpose_training.nets.pose_net import PoseNet, RefinedPoseNet
from cfpose_training.pose.calibration import measured_spec
from cfpose_training.pose.evaluation import DevelopmentSet
from cfpose_training.pose.norms import restore_norms
from cfpose_training.pose.run import PoseRun, stage1_record, stage2_record
from cfpose_training.processes import is_first_process, wait_for_processes
from cfpose_training.run.loop import RunOptions
from cfpose_training.run.state import recorded_files
from cfpose_training.sources import with_joints
from cfpose_training.stages.base import Stage
from cfpose_training.stages.graph_teacher import GraphTeacher, GraphTeacherStage
from cfpose_training.stages.stage1 import DistillStage, LabelStage, check_teacher, limb_weights
from cfpose_training.stages.stage2 import RefinerStage

TEACHER_FILE = "teacher.safetensors"
STUDENT_FILE = "student.safetensors"
REFINED_FILE = "refined.safetensors"


def pose_spec(recipe: Recipe) -> ModelSpec:
    """The ModelSpec of the network that a recipe trains.

    Raises TrainingError when the recipe has no joints yet; see `sources.with_joints`.
    """
    pose = recipe.pose
    if recipe.joints is None:
        raise TrainingError(
            f"the recipe of {pose.name} takes its joints from its annotations, and none were read; "
            f'name them in it: skeleton = "coco-17"'
        )
    return ModelSpec(
        name=pose.name,
        skeleton=recipe.joints,
        size_wh=pose.size_wh,
        decode=pose.decode,
        box_scale=pose.box_scale,
        split_ratio=pose.split_ratio,
        mean_rgb=IMAGENET_MEAN_RGB if pose.movenet is None else MOVENET_MEAN_RGB,
        std_rgb=IMAGENET_STD_RGB if pose.movenet is None else MOVENET_STD_RGB,
        trained_on=recipe.trained_on,
        license=recipe.license,
    )


def deployed_spec(recipe: Recipe) -> ModelSpec:
    """The ModelSpec of the artifact: as in training, but for margin, decoder and confidence.

    Zoom augmentation lets a network take tighter crops than its plain ones, and tighter crops
    give each joint more pixels.
    """
    pose = recipe.pose
    return dataclasses.replace(
        pose_spec(recipe),
        box_scale=pose.deploy_box_scale or pose.box_scale,
        oks_window=pose.oks_window,
        evidence=pose.evidence,
        spread_temperature=pose.spread_temperature,
        spread_isotropy=pose.spread_isotropy,
    )


def train_teacher(
    recipe: Recipe,
    data: DataOptions,
    options: RunOptions,
    *,
    init: Path | None = None,
    from_scratch: bool = False,
) -> Path | None:
    """The recipe's teacher on labels, started from `init` as in `train_stage1`.

    Returns its checkpoint, or None when time ran out first.
    """
    swapped = teacher_recipe(recipe)
    check_start(swapped, init, from_scratch=from_scratch)
    return _train_pose(swapped, None, data, options, TEACHER_FILE, init)


def train_stage1(
    recipe: Recipe,
    data: DataOptions,
    options: RunOptions,
    teacher: Path | None = None,
    *,
    init: Path | None = None,
    from_scratch: bool = False,
) -> Path | None:
    """Stage 1: the student on labels and, where the recipe distils, on a teacher's checkpoint or a
    heat-map graph.

    `init` is a checkpoint to start from, of any layout that `foreign` understands; a recipe with
    `start = "imagenet"` needs one, or `from_scratch`.
    Returns the student's checkpoint, or None when time ran out first. Raises TrainingError when
    the teacher is missing, not asked for, or does not fit.
    """
    if recipe.distill.active and teacher is None:
        raise TrainingError("the recipe's [distill] switches a term on; give the teacher's file")
    if teacher is not None and not recipe.distill.active:
        raise TrainingError(
            f"the teacher {teacher} has nothing to teach: every kd_ switch of [distill] is off"
        )
    check_start(recipe, init, from_scratch=from_scratch)
    return _train_pose(recipe, teacher, data, options, STUDENT_FILE, init)


IMAGENET_FILES = {32: "hrnet_w32-36af842e.pth", 48: "hrnet_w48-8ef0771d.pth"}


def check_start(
    recipe: Recipe,
    init: Path | None,
    *,
    option: str = "--init",
    remedy: str = "",
    from_scratch: bool = False,
) -> None:
    """Raise TrainingError when the recipe's network needs weights that no file gives.

    That is one with frozen blocks, and any of a recipe that starts from ImageNet, unless somebody
    said `from_scratch`. `option`: what gives the file; `remedy`: what the message asks for instead.
    """
    pose = recipe.pose
    if init is not None and from_scratch:
        raise TrainingError(
            f"{option} {init} and --from-scratch contradict each other; give one of the two"
        )
    if init is None and recipe.start == "imagenet" and not from_scratch:
        width = 0 if pose.hrnet is None else pose.hrnet.width
        file = IMAGENET_FILES.get(width, "a file of its backbone's ImageNet weights")
        raise TrainingError(
            f"{pose.name} starts from ImageNet, as the paper's networks do; give {option} {file} "
            f"(HRNet's authors and MMPose give such files out; a name ends in the first digits of "
            f"the file's SHA-256), or --from-scratch to begin on random weights"
        )
    if init is None and pose.lite is not None and pose.lite.frozen:
        file = f"EfficientNet-{pose.lite.body.title()}'s weights"
        raise TrainingError(
            f"{pose.name} keeps its first {pose.lite.frozen} blocks as they are, and nothing says "
            f"what they are; give {remedy or f'{option} {file}, or frozen = 0'}"
        )
    if init is None and pose.movenet is not None and pose.movenet.frozen:
        file = f"MoveNet {pose.movenet.body.title()}'s ONNX file"
        raise TrainingError(
            f"{pose.name} keeps its stem and first {pose.movenet.frozen} stages as they are, and "
            f"nothing says what they are; give {remedy or f'{option} {file}, or frozen = 0'}"
        )


def _train_pose(
    recipe: Recipe,
    teacher: Path | None,
    data: DataOptions,
    options: RunOptions,
    file: str,
    init: Path | None = None,
) -> Path | None:
    recipe = with_joints(recipe, data.root)
    spec = pose_spec(recipe)
    taught_by = None if teacher is None else open_teacher(teacher, spec, options.threads)
    torch.manual_seed(recipe.stage1.seed)
    network = PoseNet(recipe.pose.backbone, spec, recipe.pose.head)
    if recipe.pose.head_init == "marginals":
        network.head.init_as_marginals()
    if init is not None:
        found = initialise(network, init, spec.skeleton.keypoints)
        if {"head.mlp_head_x", "head.mlp_head_y"} <= set(found.taken):
            network.head.scale_logits(1 / recipe.labels.softmax_beta)  # training multiplies by it
        print(_started(init, found))
        spec = dataclasses.replace(spec, started_from=starts_of(init, recipe.started_from))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = PoseRun(recipe.stage1, spec, recipe, data, options, development_set(recipe, spec, data))
    people = run.people()
    if init is not None:
        restore_norms(network, people, cache_photos(people.photos, data.cache), spec)
    stage: Stage = LabelStage(network, spec, recipe.labels)
    if isinstance(taught_by, GraphTeacher):
        stage = GraphTeacherStage(network, spec, recipe.labels, recipe.distill, taught_by)
    elif taught_by is not None:
        weights = torch.from_numpy(limb_weights(recipe.distill.cst_weights, spec, people))
        stage = DistillStage(network, spec, recipe.labels, recipe.distill, *taught_by, weights)
    record = stage1_record(recipe, "teacher" if file == TEACHER_FILE else "stage1")
    record |= recorded_files({"teacher": teacher, "init": init})
    trained = run.train(stage, network, people, record)
    if trained is None:
        return None
    checkpoint = options.folder / file
    if is_first_process():  # the others have batch-norm statistics that the log has not measured
        save_pose(checkpoint, trained, spec)
    wait_for_processes()
    return checkpoint


def open_teacher(
    path: Path, student: ModelSpec, threads: int
) -> GraphTeacher | tuple[PoseNet, ModelSpec]:
    """A heat-map graph (.onnx), as published or adopted, or a checkpoint or exported graph of ours,
    as `load_teacher`.
    """
    if path.suffix == ".onnx" and not is_own_graph(path):
        return GraphTeacher(HeatmapGraph(path, threads=threads or None), student)
    return load_teacher(path, student)


def load_teacher(path: Path, student: ModelSpec) -> tuple[PoseNet, ModelSpec]:
    """A teacher's network and spec. Raises TrainingError when it does not fit the student."""
    if path.suffix == ".onnx":
        pose, spec = load_network(path)
    else:
        network, spec = load_pose(path)
        if isinstance(network, RefinedPoseNet):
            raise TrainingError(f"the teacher {path} has a refiner; give a checkpoint of stage 1")
        pose = network
    check_teacher(spec, student)
    return pose.to(memory_format=torch.channels_last), spec  # type: ignore[call-overload]


def train_stage2(
    recipe: Recipe,
    student: Path,
    data: DataOptions,
    options: RunOptions,
    teacher: Path | None = None,
) -> Path | None:
    """Stage 2: the refiner over a frozen student, on the targets that `stage2.gcn` names.

    Raises TrainingError when the student is of another recipe, or the teacher is missing, not
    asked for, or does not fit.
    """
    _check_target(recipe.stage2.gcn, teacher)
    recipe = with_joints(recipe, data.root)
    network, spec = load_pose(student)
    if isinstance(network, RefinedPoseNet):
        raise TrainingError(f"{student} has a refiner already; give the checkpoint of stage 1")
    check_student(student, spec, recipe)
    started = inherited([spec], recipe.started_from)
    spec = dataclasses.replace(
        pose_spec(recipe),
        started_from=started,
        oks_window=recipe.pose.oks_window,  # else it learns to undo another decoder's errors
    )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.manual_seed(recipe.stage2.optim.seed)
    refined = RefinedPoseNet(network, IGPGCN(_refiner(recipe, network), spec.skeleton), spec)
    stage = RefinerStage(
        refined,
        spec,
        recipe.stage2.output_weights,
        teacher=None if teacher is None else load_teacher(teacher, spec)[0],
        teacher_fraction=recipe.stage2.teacher_fraction if recipe.stage2.gcn == "mix" else 1.0,
        teacher_flip=recipe.stage2.teacher_flip,
        teacher_confidence=recipe.stage2.teacher_confidence,
        init_noise_px=recipe.stage2.init_noise_px,
        loss=recipe.stage2.loss,
    )
    dev = development_set(recipe, spec, data)
    run = PoseRun(recipe.stage2.optim, spec, recipe, data, options, dev)
    record = stage2_record(recipe) | recorded_files({"student": student, "teacher": teacher})
    trained = run.train(stage, refined, run.people(), record)
    if trained is None:
        return None
    assert isinstance(trained, RefinedPoseNet)
    checkpoint = options.folder / REFINED_FILE
    if is_first_process():
        deployed = dataclasses.replace(deployed_spec(recipe), started_from=started)
        deployed_dev = development_set(recipe, deployed, data)
        save_pose(checkpoint, trained, measured_spec(trained, deployed, deployed_dev))
    wait_for_processes()
    return checkpoint


def check_student(path: Path, spec: ModelSpec, recipe: Recipe) -> None:
    """Raise TrainingError unless a student's spec is the recipe's, whatever its figures and start
    are.
    """
    if dataclasses.replace(spec, metrics={}, started_from=()) != pose_spec(recipe):
        raise TrainingError(
            f"{path} is {spec.name} {spec.size_wh}, the recipe asks for {recipe.pose.name} "
            f"{recipe.pose.size_wh}, or another field of the spec differs"
        )


def _started(path: Path, found: Initialised) -> str:
    """One line on what a run starts from."""
    parts = ["the backbone", *found.taken]
    text = f"{path.name} gives {', '.join(parts)}"
    if found.joints is not None:
        text += f"; it knows {len(found.joints) or 'none'} of the joints by name"
    if found.fresh:
        text += f"; fresh: {', '.join(found.fresh)}"
    return text + f"; {len(found.dropped)} tensors of the file are not used"


def _check_target(gcn: GcnTarget, teacher: Path | None) -> None:
    if gcn == "off":
        raise TrainingError("stage2.gcn is 'off': this recipe has no refiner to train")
    if (gcn == "gt") != (teacher is None):
        raise TrainingError(
            f"stage2.gcn is {gcn!r}, and the teacher's file is {teacher}; "
            f"'teacher' and 'mix' need one, 'gt' uses none"
        )


def _refiner(recipe: Recipe, student: PoseNet) -> IGPGCNConfig:
    return IGPGCNConfig(
        size_wh=recipe.pose.size_wh,
        tap_channels=student.backbone.tap_channels,
        node_channels=recipe.stage2.node_channels,
        joint_channels=recipe.stage2.joint_channels,
        output=recipe.stage2.output,
        sample_at=recipe.stage2.sample_at,
        integral_head=recipe.stage2.sample_at == "integral",
        refine=recipe.stage2.refine,
        refine_below=recipe.stage2.refine_below,
    )


def development_set(recipe: Recipe, spec: ModelSpec, data: DataOptions) -> DevelopmentSet | None:
    """The held-out photos of the first source that holds some out.

    Raises TrainingError when no people are in them: a run would end without figures to fit.
    """
    for source in recipe.sources:
        if source.holdout_every:
            arithmetic = recipe.pose.arithmetic
            dev = DevelopmentSet(source, data.root, spec, data.cache, arithmetic)
            if not len(dev.people):
                raise TrainingError(
                    f"the source {source.name} holds out nobody: it has no labelled person in a "
                    f"photo whose id is divisible by holdout_every = {source.holdout_every}; lower "
                    f"it, or set it to 0 to hold nothing out"
                )
            return dev
    return None
