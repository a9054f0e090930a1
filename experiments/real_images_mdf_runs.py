"""The runs of `experiments.real_images_mdf`, and their costs."""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from experiments.real_tiles import TASKS, is_validation, tiles
from experiments.training_runs import train_once
from s5.backbones import with_experts
from s5.checkpoints.loading import load_weights
from s5.checkpoints.reading import save_atomic
from s5.data.splits import write_split
from s5.errors import ConfigError
from s5.params import count_parameters
from s5.segmentation import mdf
from s5.segmentation.mdf_config import MDFConfig
from s5.training.config import load_config


class Method(NamedTuple):
    """The models that a method trains.

    Attributes:
        experts: Whether the backbone has experts.
        models: The datasets of each of its models.
    """

    experts: bool
    models: tuple[tuple[str, ...], ...]


METHODS = {
    "MoE-MDF": Method(True, (TASKS,)),
    "dense MDF": Method(False, (TASKS,)),
    "one model each": Method(False, tuple((task,) for task in TASKS)),
}


class Experiment:
    """The runs of all methods and seeds, in one folder.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.splits: Path = args.out.resolve() / "splits"
        self.cfg = load_config(MDFConfig, args.config, self.options(0), backbone=args.backbone)
        if self.cfg.schedule.steps_per_epoch is None:
            raise ConfigError(
                f"{args.config}: set schedule.steps_per_epoch, so that all models train equally long"
            )
        self.steps: int = args.epochs * self.cfg.schedule.steps_per_epoch
        start = "random" if args.checkpoint is None else args.checkpoint.stem
        self.folder: Path = args.out / f"{args.backbone}_{self.steps}_{start}"

    def write_splits(self) -> None:
        """Write `<task>_train.txt` and `<task>_val.txt`, divided by location."""
        for task in TASKS:
            parts: dict[str, list[str]] = {"train": [], "val": []}
            for image, line in tiles(self.args.data, task):
                parts["val" if is_validation(task, image) else "train"].append(line)
            for part, lines in parts.items():
                write_split(self.splits / f"{task}_{part}.txt", lines)

    def options(self, seed: int) -> list[str]:
        """Configuration overrides of a run."""
        splits = [
            f"tasks.{task}.{part}={self.splits / f'{task}_{part}.txt'}"
            for task in TASKS
            for part in ("train", "val")
        ]
        schedule = [f"schedule.{key}={self.args.epochs}" for key in ("epochs", "val_interval")]
        return [f"data_root={self.args.data.resolve()}", *splits, *schedule, f"seed={seed}"]

    def backbone(self, method: str) -> str:
        """The backbone of a method's models."""
        return with_experts(self.args.backbone) if METHODS[method].experts else self.args.backbone

    def config(self, method: str) -> MDFConfig:
        """The configuration of a method's models."""
        return self.cfg.model_copy(update={"backbone": self.backbone(method)})

    def run_folder(self, method: str, tasks: Sequence[str], seed: int) -> Path:
        """Output folder of a model of a method."""
        name = f"{method.lower().replace(' ', '_')}_{seed}"
        return self.folder / (name if len(tasks) > 1 else f"{name}_{tasks[0]}")

    def weights(self, method: str, task: str, seed: int = 0) -> Path:
        """Weight file of the model that a method uses for a dataset."""
        tasks = next(tasks for tasks in METHODS[method].models if task in tasks)
        experiment = mdf.MDFExperiment(self.config(method))
        return self.run_folder(method, tasks, seed) / experiment.weight_files().whole

    def initial_weights(self, seed: int) -> Path:
        """A dense model with a head for every dataset, which all models of a seed start from."""
        path = self.folder / f"initial_{seed}.pth"
        if not path.exists():
            torch.manual_seed(seed)
            segmentor = mdf.MDFExperiment(self.cfg).new_model().segmentor
            if self.args.checkpoint is not None:
                load_weights(segmentor, self.args.checkpoint)
            save_atomic({"state_dict": segmentor.state_dict(), "meta": {}}, path)
        return path

    def run(self, method: str, seed: int) -> dict[str, float | None]:
        """Scores of a method on all datasets; trains the models that are not finished."""
        scores: dict[str, float | None] = {}
        for tasks in METHODS[method].models:
            command = ["Semantic_Segmentation/md_finetune.py", "--config", str(self.args.config)]
            command += ["--backbone", self.backbone(method), "--device", self.args.device, "--tasks", *tasks]
            command += ["--init", str(self.initial_weights(seed)), "--cfg-options", *self.options(seed)]
            scores |= train_once(command, self.run_folder(method, tasks, seed), self.steps)
        return scores

    def parameters(self, method: str) -> int:
        """Number of parameters, summed over the models of a method."""
        total = 0
        for tasks in METHODS[method].models:
            cfg = mdf.select_tasks(self.config(method), tasks)
            with torch.device("meta"):
                model = mdf.MDFExperiment(cfg).new_model()
            total += count_parameters(model.segmentor)
        return total

    def images_per_second(self, method: str, seed: int) -> float:
        """Training images per second, with the models of a method run one after the other."""
        seconds = 0.0  # for one image of each dataset
        for tasks in METHODS[method].models:
            log = self.run_folder(method, tasks, seed) / "log.jsonl"
            records = map(json.loads, log.read_text(encoding="utf-8").splitlines())
            rates = [record["images_per_s"] for record in records if "images_per_s" in record]
            seconds += len(tasks) / statistics.median(rates)
        return len(TASKS) / seconds
