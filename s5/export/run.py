"""Record a model as a graph, write it as ONNX or `torch.export`, and check the ONNX file."""

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from s5.backbones import merge_adapters
from s5.detection.network import DetectionModel
from s5.errors import ConfigError
from s5.export.detector import DetectorGraph
from s5.export.plan import ExportOptions, Plan, make_plan
from s5.export.segmentor import SegmentorGraph
from s5.export.stac import make_item
from s5.prediction.predictor import Predictor

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
SUFFIXES = {".onnx": PACKAGES, ".pt2": ()}  # and the packages that each needs
OPSET, IR_VERSION = 18, 8  # what ONNX Runtime reads from 1.14 on; Deepness installs up to 1.17
SINGLE_FILE = 1_900_000_000  # bytes of weights; a protobuf file holds 2 GiB
TOLERANCE = 1e-3  # of probabilities and scores; with large weights, float32 rounding alone reaches 5e-4
BOX_TOLERANCE = 0.05  # pixels
DEFAULTS = ExportOptions()
STRAYS = 0.02  # share of boxes that may differ: two almost equal scores may change places


def export_model(
    model: Predictor, out: str | Path, options: ExportOptions = DEFAULTS
) -> tuple[Plan, list[Path]]:
    """Export a trained model, in float32 and on the CPU.

    Args:
        model: The model, of `s5.load`; its weights are read again from its file.
        out: The file, `.onnx` or `.pt2` (`torch.export`).
        options: Task, size and what else can be chosen.

    Returns:
        What was exported, and the written files: the model, its weights if they are too large for one file,
        and the STAC item `<name>.stac.json`.

    Raises:
        CheckpointError: The weights cannot be read.
        ConfigError: An option is invalid, a package is missing, the file exists or cannot be written, or the
            ONNX file computes something else than the model.
    """
    out = Path(out)
    check_target(out, options.overwrite)
    plan = make_plan(model, options)
    graph = make_graph(plan, model.checkpoint)
    return plan, write_files(record(graph, plan), graph, plan, out)


def write_files(recorded: ExportedProgram, graph: nn.Module, plan: Plan, out: Path) -> list[Path]:
    """Write a recorded graph and its STAC item; all files or none.

    Raises:
        ConfigError: A file cannot be written, or the ONNX file computes something else than the graph.
    """
    parameters = sum(p.numel() for p in graph.parameters())
    with _folder_beside(out) as folder:
        file = folder / out.name
        if out.suffix == ".onnx":
            write_onnx(recorded, plan, file, 4 * parameters > SINGLE_FILE)
            check_onnx(file, graph, plan)
        else:
            torch.export.save(recorded, file, extra_files={"metadata.json": json.dumps(plan.metadata())})
        files = [file, *sorted(folder.glob(f"{out.name}.*"))]
        item = folder / _item_of(out).name
        item.write_text(json.dumps(make_item(plan, files, parameters), indent=2))
        return [path.replace(out.with_name(path.name)) for path in (*files, item)]


def make_graph(plan: Plan, checkpoint: Path) -> nn.Module:
    """Build the exported tasks of a model and load their weights.

    Raises:
        CheckpointError: The weights do not fit, or part of a head is missing.
    """
    model = plan.spec.build(checkpoint, torch.device("cpu"), None)
    adapted = model.network.backbone
    if len(adapted.adapters) == 1:  # LoRA of a single task needs no layers of its own
        network: Any = plan.spec.build_network()
        network.backbone.load_state_dict(merge_adapters(adapted.state_dict(), *adapted.adapters))
        network.heads.load_state_dict(model.network.heads.state_dict())
        model = plan.spec.wrap(network, None)
    graph: nn.Module = DetectorGraph(model) if isinstance(model, DetectionModel) else SegmentorGraph(model)
    return graph.to(memory_format=torch.contiguous_format).requires_grad_(False).eval()


def record(graph: nn.Module, plan: Plan) -> ExportedProgram:
    """Record a graph for all sizes of its plan."""
    sizes = dict.fromkeys(plan.free_dimensions, Dim.DYNAMIC)
    example = torch.rand(plan.example_shape)
    with torch.no_grad(), _quiet():
        return torch.export.export(graph, (example,), dynamic_shapes=(sizes,), strict=False)


def write_onnx(recorded: ExportedProgram, plan: Plan, file: Path, external: bool) -> None:
    """Write a recorded graph as ONNX.

    Args:
        recorded: The graph.
        plan: Its sizes, names and metadata.
        file: The file.
        external: Write the weights to `<file>.data`.
    """
    with _quiet():
        program: Any = torch.onnx.export(
            recorded,
            (),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(plan.tasks),
            verbose=False,
        )
    model = program.model
    model.ir_version = IR_VERSION
    model.metadata_props.update(plan.metadata())
    _name_sizes(model, plan)
    program.save(str(file), external_data=external)


def _name_sizes(model: Any, plan: Plan) -> None:  # noqa: ANN401 - onnx_ir is optional
    """Name the free dimensions of inputs and outputs instead of numbering them."""
    import onnx_ir

    (image,) = model.graph.inputs
    names = {str(image.shape[i]): name for i, name in plan.free_dimensions.items()}
    for node in model.graph.all_nodes():
        for value in node.outputs:  # formulas of the numbered sizes, which the runtime infers itself
            if value not in model.graph.outputs:
                value.shape = None
    for value in (image, *model.graph.outputs):
        sides = [side if isinstance(side, int) else names.get(str(side)) for side in value.shape]
        value.shape = onnx_ir.Shape(sides)


def check_onnx(file: Path, graph: nn.Module, plan: Plan) -> None:
    """Compare an ONNX file with the graph that it was written from, on random images.

    Raises:
        ConfigError: They compute different results.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    image = torch.rand(plan.example_shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = graph(image)
    found = [torch.from_numpy(np.asarray(result)) for result in session.run(None, {"image": image.numpy()})]
    compare = _stray_boxes if plan.is_detector else _largest_difference
    for task, ours, theirs in zip(plan.tasks, expected, found, strict=True):
        if not compare(ours, theirs):
            raise ConfigError(
                f"{file.name}: ONNX Runtime {onnxruntime.__version__} computes other results for {task} than "
                f"PyTorch {torch.__version__}; nothing was written. Try other versions of onnx, "
                f"onnxscript and onnxruntime"
            )


def _largest_difference(expected: Tensor, found: Tensor) -> bool:
    return expected.shape == found.shape and bool((expected - found).abs().max() <= TOLERANCE)


def _stray_boxes(expected: Tensor, found: Tensor) -> bool:
    """Whether almost all boxes (1, 4 + K + 1, N) have an equal one, in any order."""
    if expected.shape != found.shape:
        return False
    ours, theirs = (boxes[0].T[boxes[0, 4:-1].amax(0) > 0] for boxes in (expected, found))
    if not len(ours) or not len(theirs):
        return len(ours) == len(theirs)
    unit = torch.cat([torch.full((4,), BOX_TOLERANCE), torch.full((ours.shape[1] - 4,), TOLERANCE)])
    unit[-1] = BOX_TOLERANCE
    far = torch.cdist(ours[:, :-1] / unit[:-1], theirs[:, :-1] / unit[:-1], p=torch.inf).amin(1) > 1
    return bool(far.float().mean() <= STRAYS)


def _item_of(out: Path) -> Path:
    """The STAC item beside a file."""
    return out.with_name(f"{out.stem}.stac.json")


def check_target(out: Path, overwrite: bool) -> None:
    """Reject a file that cannot be written, before anything is computed."""
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"{out}: choose a name that ends in .onnx (ONNX) or .pt2 (torch.export)")
    missing = [name for name in SUFFIXES[out.suffix] if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"ONNX files need {', '.join(missing)}: pip install -e '.[export]' (or bash scripts/env.sh)"
        )
    if out.is_dir():
        raise ConfigError(f"{out} is a folder: name the file to write")
    for path in (out, _item_of(out)):
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} exists: add --overwrite, or choose another name")


@contextmanager
def _folder_beside(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside a file, from which finished files are renamed."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error}); choose another folder") from error
    try:
        yield folder
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error}); is the disk full?") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of the exporters, which are about their own code."""
    logger = logging.getLogger("onnx_ir")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
