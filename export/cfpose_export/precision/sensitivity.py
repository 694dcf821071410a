"""Which modules cause most of a lowered graph's drift."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from cfpose_export.graph.rules import LOGITS, element_types
from cfpose_export.precision.typed import own_name, scope
from cfpose_export.proof.compare import Values, compare_graphs, run_graph
from cfpose_export.proof.crops import ProofSet
from cfpose_sdk.spec import ModelSpec

PROBED = 8  # crops whose inner values are compared
TRIED = 6  # modules that are lowered alone
ALONE_CROPS = 64
# modules that stay float32 → a graph to run in which the other chosen ones are lowered
Build = Callable[[Collection[str]], onnx.ModelProto]


@dataclass(frozen=True)
class Culprit:
    """A module, and what lowering it alone does to the keypoints."""

    module: str
    own_error: float  # relative error of its values beyond that of its inputs
    mean_px: float
    p99_px: float
    overflows: bool  # it makes numbers that are not finite from finite ones

    def __str__(self) -> str:
        how = "overflows" if self.overflows else f"alone: p99 {self.p99_px:.3g} px"
        return f"{self.module} ({how})"


def find_culprits(
    reference: onnx.ModelProto,
    build: Build,
    kept: Collection[str],
    modules: Sequence[str],
    proof: ProofSet,
    expected: Values,
    spec: ModelSpec,
    floor: float,
) -> list[Culprit]:
    """The worst of the lowered `modules`, worst first.

    The values inside both graphs are compared on a few crops; the modules that add most are then
    lowered one at a time, and ranked by the drift that each causes. Where some overflow, those are
    all that is returned. `expected` is what `reference`
    gives for the crops of `proof`.
    """
    chosen = _spread(len(proof.crops), ALONE_CROPS)
    few = ProofSet(proof.crops[chosen], proof.areas[chosen], tuple(proof.kinds[i] for i in chosen))
    wanted = {name: value[chosen] for name, value in expected.items()}
    probed = few.crops[_spread(len(few.crops), PROBED)]
    errors = own_errors(reference, build(kept), modules, probed)
    worst = sorted(modules, key=lambda module: -errors[module])[:TRIED]
    if overflowing := [module for module in worst if math.isinf(errors[module])]:
        inf = math.inf  # no need to run it: what is not finite stays so
        return [Culprit(own_name(m, modules), inf, inf, inf, overflows=True) for m in overflowing]
    culprits = []
    for module in worst:
        others = [f"{m}." for m in modules if m != module]
        alone = run_graph(build([*kept, *others]), few.crops, LOGITS)
        figures = compare_graphs("alone", wanted, alone, few, spec, floor)
        culprits.append(
            Culprit(
                module=own_name(module, modules),
                own_error=errors[module],
                mean_px=figures.mean_px,
                p99_px=figures.p99_px,
                overflows=False,
            )
        )
    return sorted(culprits, key=lambda c: (-c.p99_px, -c.mean_px))


def own_errors(
    reference: onnx.ModelProto,
    lowered: onnx.ModelProto,
    modules: Collection[str],
    crops: NDArray[np.uint8],
) -> Mapping[str, float]:
    """Relative error that each module adds: of its values, less the largest of its inputs'.

    Infinite where a module turns finite inputs into numbers that are not finite.
    """
    types = element_types(reference)
    nodes = [node for node in reference.graph.node if scope(node) in set(modules)]
    names = {n for node in nodes for n in (*node.input, *node.output)}
    made = {n for node in reference.graph.node for n in node.output} & names
    inside = {n for node in lowered.graph.node for n in node.output}
    outputs = {o.name for o in reference.graph.output}
    probes = sorted(n for n in (made & inside) - outputs if types.get(n) == onnx.TensorProto.FLOAT)
    exact, rough = run_graph(reference, crops, probes), run_graph(lowered, crops, probes)
    errors = {name: _relative(exact[name], rough[name]) for name in probes}
    own = dict.fromkeys(modules, 0.0)
    for node in nodes:
        before = max((errors.get(name, 0.0) for name in node.input), default=0.0)
        if math.isinf(before):
            continue  # broken before it
        after = max((errors.get(name, 0.0) for name in node.output), default=0.0)
        own[scope(node)] = max(own[scope(node)], after - before)
    return own


def summary(culprits: Sequence[Culprit]) -> list[dict[str, object]]:
    """For a report."""
    return [dataclasses.asdict(culprit) for culprit in culprits]


def _relative(exact: NDArray[np.float32], rough: NDArray[np.float32]) -> float:
    if not np.isfinite(rough).all():
        return math.inf
    scale = float(np.linalg.norm(exact.astype(np.float64)))
    error = float(np.linalg.norm(rough.astype(np.float64) - exact))
    return error / scale if scale else error


def _spread(count: int, wanted: int) -> NDArray[np.intp]:
    """Up to `wanted` indices, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.intp))
