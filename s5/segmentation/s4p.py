"""The S4P pre-training experiment: a semi-supervised method on labeled and unlabeled images."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from torch.utils.data import DataLoader

from s5.backbones import file_name
from s5.data.labels import get_table
from s5.data.loaders import TrainingData, fixmatch_loader, resolve_split, validation_loader
from s5.data.sources import LabeledImages, UnlabeledImages, ValidationImages, WeakAugmentation
from s5.errors import ConfigError
from s5.launch import ALONE, Launch
from s5.segmentation.hooks import CollapseWatch, PseudoLabelHook, ViewsHook
from s5.segmentation.methods import METHODS
from s5.segmentation.methods.fixmatch import FixMatch
from s5.segmentation.metrics import SegmentationMetric
from s5.segmentation.s4p_config import S4PConfig
from s5.segmentation.segmentor import build_network
from s5.segmentation.trained import SegmentationSpec
from s5.training.experiment import Experiment, Steps, check_splits
from s5.training.hooks import PicturesHook, WeightFiles
from s5.training.optim import cosine_schedule

TASK = "s4p"


class S4PExperiment(Experiment[S4PConfig, FixMatch]):
    """A run of the semi-supervised method chosen in the configuration.

    Attributes:
        table: Label table.
    """

    def __init__(self, cfg: S4PConfig, launch: Launch = ALONE, work_dir: Path = Path()) -> None:
        super().__init__(cfg, launch, work_dir, f"s4p_{file_name(cfg.backbone)}")
        self.table = get_table(cfg.data.labels)

    def new_model(self) -> FixMatch:
        """Build the network and the method around it."""
        cfg = self.cfg
        classes = {TASK: self.table.num_classes}
        network = build_network(cfg.backbone, classes, cfg.data.crop, cfg.model, crop_key="data.crop")
        return METHODS[cfg.method](network, {TASK: cfg.data.val.inference()}, self.dtype(), cfg.settings)

    def build_training_data(self) -> TrainingData:
        """Batches of labeled and, unless their batch size is 0, unlabeled images.

        Raises:
            ConfigError: A batch has a single image, too few for batch norm.
        """
        data = self.cfg.data
        sizes = data.labeled.batch_size, data.unlabeled.batch_size
        settings = self.cfg.settings
        alone = sizes[1] == 0 or settings.warmup_iters > 0 or settings.lambda_u == 0
        if alone and sizes[0] < 2 and not self.synchronises_batch_norm():
            raise ConfigError(
                f"data.labeled.batch_size = {sizes[0]} in steps without unlabeled images: batch norm needs "
                f"at least two images per step"
            )
        split = resolve_split(self.cfg.data_root, data.labeled.split)
        labeled = LabeledImages(split, self.table, self.weak_augmentation())
        unlabeled = self.build_unlabeled() if sizes[1] else None
        return fixmatch_loader(
            labeled, sizes[0], unlabeled, sizes[1], self.cfg.seed, self.launch, data.workers
        )

    def build_unlabeled(self) -> UnlabeledImages:
        """The unlabeled images, with stored pseudo-labels if the method uses them."""
        split = resolve_split(self.cfg.data_root, self.cfg.data.unlabeled.split)
        settings = self.cfg.settings
        stored = self.table if settings.pseudo_labels == "stored" else None
        return UnlabeledImages(split, self.weak_augmentation(), settings.strong, stored)

    def weak_augmentation(self) -> WeakAugmentation:
        """Geometry of the weak views."""
        data = self.cfg.data
        return WeakAugmentation(data.crop, data.scale, data.flip, data.rotate)

    def build_val_loader(self) -> DataLoader:
        """The validation images of this process."""
        split = resolve_split(self.cfg.data_root, self.cfg.data.val.split)
        images = ValidationImages(split, self.table, TASK)
        return validation_loader([images], self.launch, self.cfg.data.workers)

    def build_metrics(self) -> list[SegmentationMetric]:
        """Scores named `mIoU` ..."""
        return [SegmentationMetric(self.table, TASK)]

    def check_data(self) -> None:
        """Reject labeled and validation splits with errors, unless `data.check` is false."""
        data = self.cfg.data
        if data.check:
            parts = {"labeled": data.labeled.split, "validation": data.val.split}
            root = self.cfg.data_root
            splits = [(name, resolve_split(root, path), self.table) for name, path in parts.items()]
            check_splits(splits, self.work_dir, data.workers, self.launch)

    def steps(self) -> Steps:
        """Length and intervals, configured in steps."""
        schedule = self.cfg.schedule
        return Steps(schedule.total_iters, schedule.val_interval, schedule.checkpoint_interval)

    def lr_schedule(self) -> list[dict[str, Any]]:
        """Cosine decay to zero."""
        return cosine_schedule(self.cfg.schedule.total_iters, self.cfg.optim.warmup_iters)

    def weight_files(self) -> WeightFiles:
        """Files named `<backbone>_s4p_upernet.pth` and `<backbone>_s4p.pth`."""
        name = file_name(self.cfg.backbone)
        return WeightFiles(f"{name}_s4p_upernet.pth", f"{name}_s4p.pth")

    def weights_meta(self) -> dict[str, Any]:
        """Metadata of the weight files, sufficient to rebuild the model."""
        spec = SegmentationSpec.from_s4p_config(self.cfg, self.cfg.backbone, TASK)
        return replace(spec, normalization=self.model.normalization).meta()

    def best_scores(self) -> dict[str, list[str]]:
        """Select the best weights by mIoU."""
        return {"best": ["mIoU"]}

    def pictures(self) -> Hook:
        """Images, ground truth and predictions."""
        return PicturesHook({TASK: self.table})

    def own_hooks(self) -> list[Hook]:
        """Pictures and statistics of the pseudo-labels."""
        if not self.data.unlabeled:
            return []
        collapse = self.cfg.settings.collapse
        watch = CollapseWatch(self.table.classes, collapse.share, collapse.missing_steps, self.cfg.section)
        return [ViewsHook(self.table), PseudoLabelHook(watch, self.cfg.schedule.log_interval)]

    @property
    def max_unreadable(self) -> float:
        """Share of unlabeled images that may be unreadable."""
        return self.cfg.data.unlabeled.max_unreadable
