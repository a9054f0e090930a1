"""Images per second and core of the training loaders, against the plain pipeline on the same files."""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.plain_loader import plain_labeled, plain_unlabeled
from benchmarks.sources import NUM_CLASSES, Sources, write_sources
from benchmarks.timing import device_name, interleaved, markdown_table
from s5.backbones import IMAGENET
from s5.data.augmentation import StrongAugmentation, derangement
from s5.data.labels import get_table
from s5.data.sampler import Draw
from s5.data.sources import LabeledImages, MultiSourceDataset, UnlabeledImages, WeakAugmentation
from s5.data.splits import Split
from s5.ops.cutmix import cutmix
from s5.ops.photometric import apply_photometric, normalize

TABLE = {"name": "benchmark", "classes": [f"class {i}" for i in range(NUM_CLASSES)]}
HEADER = ("source", "KB", "loader", "plain", "S5", "ratio", "S5 with device work", "ratio with it")


class Pipelines:
    """Both pipelines on the same files; every call loads all images once."""

    def __init__(self, sources: Sources, encoding: str, crop: int, device: torch.device) -> None:
        """Open the splits of one encoding."""
        self.root, self.crop, self.device = sources.root, crop, device
        self.images, self.masks = sources.images[encoding], sources.masks
        labeled, unlabeled = (Split(path, sources.root) for path in sources.write_splits(encoding))
        weak = WeakAugmentation(crop)
        self.dataset = MultiSourceDataset(
            [
                LabeledImages(labeled, get_table(TABLE), weak),
                UnlabeledImages(unlabeled, weak, StrongAugmentation()),
            ],
            seed=0,
        )

    def plain(self, source: int) -> None:
        """Plain pipeline over all files, stacked to a batch."""
        random.seed(0)
        torch.manual_seed(0)
        paths = [self.root / name for name in self.images]
        samples: Sequence[tuple[torch.Tensor, ...]]
        if source:
            samples = [plain_unlabeled(path, self.crop) for path in paths]
        else:
            masks = [self.root / name for name in self.masks]
            samples = [plain_labeled(path, mask, self.crop) for path, mask in zip(paths, masks, strict=True)]
        for parts in zip(*samples, strict=True):
            torch.stack(parts)

    def ours(self, source: int) -> dict[str, torch.Tensor]:
        """The loader's work on all files, stacked to a batch."""
        samples = [self.dataset[Draw(source, index, index)] for index in range(len(self.images))]
        arrays = [name for name, value in samples[0].items() if isinstance(value, np.ndarray)]
        return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in arrays}

    def device_work(self, batch: dict[str, torch.Tensor]) -> None:
        """The work left to the training step: strong view, CutMix, normalisation."""
        images = batch["image"].to(self.device).permute(0, 3, 1, 2)
        normalize(images, *IMAGENET)
        if "boxes" in batch:
            photometric, boxes = batch["photometric"][:, 0], batch["boxes"][:, 0]
            partner = torch.from_numpy(derangement(np.random.default_rng(0), len(images)))
            photometric, boxes, partner = (x.to(self.device) for x in (photometric, boxes, partner))
            strong = cutmix(apply_photometric(images.float() / 255, photometric), boxes, partner)
            normalize(strong, *IMAGENET)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(pipelines: Pipelines, source: int, repeats: int) -> list[float]:
    """Images per second: plain, ours, ours with the work on the device; with ratios to plain."""
    batch = pipelines.ours(source)
    tasks: dict[str, Callable[[], object]] = {
        "plain": lambda: pipelines.plain(source),
        "ours": lambda: pipelines.ours(source),
        "device": lambda: pipelines.device_work(batch),
    }
    device_is_cpu = pipelines.device.type == "cpu"
    seconds = interleaved(tasks, repeats, time.process_time if device_is_cpu else time.perf_counter)
    count = len(pipelines.images)
    plain, ours = count / seconds["plain"], count / seconds["ours"]
    whole = count / (seconds["ours"] + seconds["device"])
    return [plain, ours, ours / plain, whole, whole / plain]


def run(args: argparse.Namespace) -> str:
    """Measure all loaders; returns the table."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    device = torch.device(args.device)
    rows: list[Sequence[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        sources = write_sources(Path(folder), args.images, args.source_size)
        for encoding in sources.images:
            pipelines = Pipelines(sources, encoding, args.crop, device)
            for source, name in ((1, "train_u"), (0, "train_l")):
                figures = measure(pipelines, source, args.repeats)
                rows.append((encoding, round(sources.mean_kilobytes(encoding)), name, *figures))
    title = (
        f"Loader, images/s on one core: source {args.source_size}², crop {args.crop}. "
        f"CPU: {device_name('cpu')}; device work on {device_name(args.device)}"
        f"{' (one thread)' if args.device == 'cpu' else ''}."
    )
    return f"{title}\n\n{markdown_table(HEADER, rows)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--source-size", type=int, default=1024, help="side of the source images in pixels")
    parser.add_argument("--crop", type=int, default=512, help="side of the crop in pixels")
    parser.add_argument("--images", type=int, default=12, help="images per measurement")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loader", description=__doc__, allow_abbrev=False
    )
    add_arguments(parser)
    parser.add_argument("--repeats", type=int, default=5, help="interleaved rounds; the median is reported")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    print(run(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
