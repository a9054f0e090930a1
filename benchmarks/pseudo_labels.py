"""Train S4P on unlabeled images whose true labels are known, and report how good its pseudo-labels are.

    python -m benchmarks.pseudo_labels --truth SPLIT --backbone vit_t [--config CONFIG]

SPLIT lists the unlabeled images with their true masks (`image mask`), which are compared, not trained on;
`experiments.generated_scenes` writes such a split (`splits/unlabeled/truth.txt`). All options of
`S4_Pretrain/train.py` apply, and the losses are those of the same run without truth. Every
`schedule.log_interval` steps, a report on the steps since the last one is appended to `pseudo_labels.md` in
the work folder, and `pictures/strong_<iter>.jpg` shows the newest batch: weak view, its truth, its
pseudo-labels, then each strong view, its truth, its pseudo-labels, the student's prediction. Runs in one
process.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from s5 import launch
from s5.checkpoints.initial import initialise
from s5.command import run_command
from s5.data.label_table import IGNORE, LabelTable
from s5.data.loaders import resolve_split
from s5.data.sources import UnlabeledImages
from s5.errors import ConfigError
from s5.launch import LaunchError
from s5.ops.confusion import confusion_matrix
from s5.ops.cutmix import cutmix
from s5.segmentation.methods.fixmatch import FixMatch, View
from s5.segmentation.s4p import TASK, S4PExperiment
from s5.segmentation.s4p_config import S4PConfig
from s5.segmentation.segmentor import build_network
from s5.training.command import add_training_options, command_parser
from s5.training.config import load_config
from s5.training.experiment import run
from s5.training.hooks.pictures import colored, legend, rgb, write_sheet
from s5.training.reports import text_table
from s5.training.resume import ResumableHook, open_work_dir
from s5.training.runner import unwrap

REPO = Path(__file__).resolve().parents[1]
REPORT = "pseudo_labels.md"
BINS = 10  # of the calibration
WEAK_TITLES = ("weak view", "truth", "pseudo-labels")
STRONG_TITLES = ("strong view", "truth", "pseudo-labels", "prediction")
COUNTS = ("pseudo", "selected", "bins", "student")
STATES = ("trained on a right pseudo-label", "trained on a wrong pseudo-label", "not trained on")


class ObservedFixMatch(FixMatch):
    """FixMatch that compares its pseudo-labels and the predictions on strong views with the truth.

    Attributes:
        pseudo: (K, K) pixels of the weak views by truth and pseudo-label.
        selected: (K, K) the same, of pixels with a weight of at least 0.5.
        bins: (2, K, BINS) pixels, and those with a right pseudo-label, by pseudo-label and confidence.
        student: (3, K, K) pixels of the strong views by truth and prediction, for each of `STATES`.
        pictures: Columns of the sheet, from the newest batch.
    """

    pictures: tuple[Tensor, ...]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._truth: Tensor | None = None
        self.reset()

    def reset(self) -> None:
        """Set all counts to zero."""
        square = (self.num_classes, self.num_classes)
        self.pseudo, self.selected = (torch.zeros(square, dtype=torch.int64) for _ in range(2))
        self.bins = torch.zeros(2, self.num_classes, BINS, dtype=torch.int64)
        self.student = torch.zeros(len(STATES), *square, dtype=torch.int64)

    def loss(self, *args: Any, stored: Tensor | None = None, **batch: Any) -> dict[str, Tensor]:
        """Compute the losses without the `stored` labels, which are the truth."""
        self._truth = stored
        losses = super().loss(*args, **batch)
        self._truth = None
        return losses

    def weights(self, pseudo: Tensor, confidence: Tensor) -> Tensor:
        """Count the pseudo-labels of a training step, and return the method's weights."""
        weights = super().weights(pseudo, confidence)
        if (truth := self._truth) is not None:
            chosen = torch.where(weights >= 0.5, truth, IGNORE)
            self.pseudo += confusion_matrix(pseudo, truth, self.num_classes).cpu()
            self.selected += confusion_matrix(pseudo, chosen, self.num_classes).cpu()
            known = truth != IGNORE
            index = (confidence * BINS).long().clamp(max=BINS - 1) + pseudo.long() * BINS
            for i, pixels in enumerate((known, known & (pseudo == truth))):
                counts = index[pixels].bincount(minlength=self.bins[i].numel())
                self.bins[i] += counts.view(-1, BINS).cpu()
        return weights

    def strong_views(self, weak: View, views: dict[str, Tensor]) -> list[View]:
        """Make the strong views, and mix the truth like them."""
        if (truth := self._truth) is not None:
            self._weak = weak
            pairs = zip(views["boxes"], views["partner"], strict=True)
            self._mixed = [cutmix(truth, boxes, partner) for boxes, partner in pairs]
        return super().strong_views(weak, views)

    def unlabeled_loss(self, logits: Tensor, strong: Sequence[View]) -> Tensor:
        """Count the predictions on the strong views, and return the method's loss."""
        predictions = logits.detach().argmax(1).split(len(logits) // len(strong))
        for prediction, view, truth in zip(predictions, strong, self._mixed, strict=True):
            selected, right = view.weights >= 0.5, view.pseudo == truth
            for i, state in enumerate((selected & right, selected & ~right, ~selected)):
                counted = torch.where(state & view.valid, truth, IGNORE)
                self.student[i] += confusion_matrix(prediction, counted, self.num_classes).cpu()
        images = [self._weak.images, self._truth, _labels(self._weak)]
        for view, truth, prediction in zip(strong, self._mixed, predictions, strict=True):
            images += [view.images, truth, _labels(view), prediction]
        self.pictures = tuple(cast(Tensor, image).detach() for image in images)
        return super().unlabeled_loss(logits, strong)

    def preview(self, batch: dict[str, Any], count: int = 3) -> dict[str, Tensor]:
        """Draw the predicted pseudo-labels."""
        return super().preview({name: value for name, value in batch.items() if name != "stored"}, count)


def _labels(view: View) -> Tensor:
    return torch.where((view.weights >= 0.5) & view.valid, view.pseudo, IGNORE)


class TruthHook(ResumableHook):
    """Writes the reports and pictures.

    Args:
        table: Label table.
        interval: Steps between reports.
    """

    key = "truth"

    def __init__(self, table: LabelTable, interval: int) -> None:
        self.table, self.interval = table, interval

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Write a report if one is due."""
        model = cast(ObservedFixMatch, unwrap(runner.model))
        if not self.every_n_train_iters(runner, self.interval) or not model.pseudo.any():
            return
        text = f"## Steps to {runner.iter + 1}\n\n{report(model, self.table.classes)}\n"
        with (Path(runner.work_dir) / REPORT).open("a", encoding="utf-8") as file:
            file.write(text)
        columns = [
            [rgb(image) if image.ndim == 3 else colored(image, self.table) for image in column.cpu()]
            for column in model.pictures
        ]
        rows = [list(row) for row in zip(*columns, strict=True)]
        titles = [*WEAK_TITLES, *STRONG_TITLES * ((len(columns) - len(WEAK_TITLES)) // len(STRONG_TITLES))]
        entries = legend(self.table, "no label or pseudo-label")
        write_sheet(runner, "strong", rows, titles, entries, runner.iter + 1)
        model.reset()

    def state_dict(self, runner: Runner, iteration: int) -> dict[str, Any]:
        """Return the counts since the last report, and the length of the reports in bytes."""
        path, model = Path(runner.work_dir) / REPORT, unwrap(runner.model)
        length = path.stat().st_size if path.exists() else 0
        return {"length": length, "counts": {name: getattr(model, name) for name in COUNTS}}

    def load_state_dict(self, runner: Runner, iteration: int, state: dict[str, Any]) -> None:
        """Restore the counts; reports on later steps, which will be repeated, are removed."""
        path, model = Path(runner.work_dir) / REPORT, unwrap(runner.model)
        if path.exists():
            os.truncate(path, state["length"])
        for name in COUNTS:
            setattr(model, name, state["counts"][name])


def report(model: ObservedFixMatch, classes: Sequence[str]) -> str:
    """Tables of one interval: pseudo-labels by class, calibration, errors of the student; percent."""
    pseudo, selected = model.pseudo.double(), model.selected.double()
    rows = [
        [
            name,
            _percent(pseudo[i].sum(), pseudo.sum()),
            _percent(pseudo[:, i].sum(), pseudo.sum()),
            _percent(selected[:, i].sum(), selected.sum()),
            _percent(selected[i].sum(), pseudo[i].sum()),
            _percent(pseudo[i, i], pseudo[:, i].sum()),
            _percent(selected[i, i], selected[:, i].sum()),
            _percent(selected[i, i], pseudo[i].sum()),
        ]
        for i, name in enumerate(classes)
    ]
    right, kept = pseudo.diagonal().sum(), selected.diagonal().sum()
    rows.append(["all", "", "", "", _percent(selected.sum(), pseudo.sum()), _percent(right, pseudo.sum())])
    rows[-1] += [_percent(kept, selected.sum()), _percent(kept, pseudo.sum())]
    heads = ["class", "true share", "predicted share", "share of the selected", "selected", "precision"]
    heads += ["precision of the selected", "selected and right"]
    tables = [text_table(heads, rows, markdown=True)]
    bins = model.bins.double()
    pixels, correct = torch.cat([bins.sum(1, keepdim=True), bins], 1)  # of all classes, then of each
    calibration = [
        [
            f"{i / BINS:.1f} to {(i + 1) / BINS:.1f}",
            _percent(pixels[0, i], pixels[0].sum()),
            *(_percent(*counts) for counts in zip(correct[:, i], pixels[:, i], strict=True)),
        ]
        for i in range(BINS)
    ]
    heads = ["confidence", "pixels", "right", *(f"right: {name}" for name in classes)]
    tables.append(text_table(heads, calibration, markdown=True))
    student = model.student.double()
    wrong = student.sum((1, 2)) - student.diagonal(dim1=1, dim2=2).sum(1)
    totals = student.sum((1, 2))
    errors = [
        [state, _percent(n, student.sum()), _percent(count, n), _percent(count, wrong.sum())]
        for state, n, count in zip(STATES, totals, wrong, strict=True)
    ]
    heads = ["pixels of strong views", "share", "student wrong", "share of its errors"]
    tables.append(text_table(heads, errors, markdown=True))
    confusion = student.sum(0)
    cells = [
        [name, *(_percent(value, confusion[i].sum()) for value in confusion[i])]
        for i, name in enumerate(classes)
    ]
    tables.append(text_table(["truth, predicted by the student as", *classes], cells, markdown=True))
    return "\n\n".join(tables) + "\n"


def _percent(part: Tensor, whole: Tensor) -> str:
    return f"{100 * part / whole:.1f}" if whole > 0 else "-"


class ObservedExperiment(S4PExperiment):
    """An S4P run with known truth of the unlabeled images."""

    truth: Path

    def new_model(self) -> FixMatch:
        """Build the network and the observed method around it."""
        cfg, classes = self.cfg, {TASK: self.table.num_classes}
        network = build_network(cfg.backbone, classes, cfg.data.crop, cfg.model, crop_key="data.crop")
        return ObservedFixMatch(network, {TASK: cfg.data.val.inference()}, self.dtype(), cfg.settings)

    def build_unlabeled(self) -> UnlabeledImages:
        """The unlabeled images with their true masks."""
        split = resolve_split(self.cfg.data_root, self.truth)
        return UnlabeledImages(split, self.weak_augmentation(), self.cfg.settings.strong, self.table)

    def own_hooks(self) -> list[Hook]:
        """Add the reports."""
        return [*super().own_hooks(), TruthHook(self.table, self.cfg.schedule.log_interval)]


def main(argv: list[str] | None = None) -> int:
    """Train, write the reports, and return the exit code."""
    parser = command_parser(__doc__, REPO / "experiments/configs/generated_scenes.yaml")
    add_training_options(parser, "none, mae, timm, or a checkpoint", work_dir="pseudo_labels")
    parser.add_argument("--truth", type=Path, required=True, help="split of the unlabeled images with masks")
    args = parser.parse_args(argv)
    cfg = load_config(S4PConfig, args.config, args.cfg_options, backbone=args.backbone, init=args.init)
    if cfg.method != "fixmatch" or cfg.settings.pseudo_labels == "stored":
        raise ConfigError("only predicted pseudo-labels of method: fixmatch can be compared with the truth")
    if cfg.data.unlabeled.batch_size == 0 or cfg.settings.lambda_u == 0:
        raise ConfigError(
            "without unlabeled images, or with lambda_u 0, there are no pseudo-labels to report"
        )
    processes = launch.start(args.device)
    if processes.world_size > 1:
        raise LaunchError("the report is written by a single process; start this without torchrun")
    work_dir = args.work_dir or Path("work_dirs/pseudo_labels")
    resume_from = open_work_dir(work_dir, processes, args.resume)
    experiment = ObservedExperiment(cfg, processes, work_dir)
    experiment.truth = args.truth
    experiment.build_data()
    model = experiment.build_model()
    if resume_from is None:
        initialise(model.segmentor, cfg.backbone, cfg.init, cfg.init_paths, REPO, cfg.init_bands)
        model.restart_teacher()
    return run(experiment, resume_from)


if __name__ == "__main__":
    sys.exit(run_command(main))
