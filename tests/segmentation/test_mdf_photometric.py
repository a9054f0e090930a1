"""Photometric augmentation of multi-dataset training: per task, per image, on the model's device."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from s5.backbones.vit import Variant
from s5.data.augmentation import NEUTRAL, Photometric, draw_photometric, sample_rng
from s5.data.folders import pair_folders
from s5.data.labels import get_table
from s5.data.loaders import TasksCollate
from s5.data.sampler import Draw
from s5.data.sources import LabeledImages, MultiSourceDataset, WeakAugmentation
from s5.errors import ConfigError
from s5.segmentation.mdf_config import MDFConfig
from s5.segmentation.multi_dataset import MultiDataset, TaskLoss
from s5.segmentation.segmentor import build_segmentor
from s5.training.config import load_config
from tests.helpers.mdf_runs import TASKS, arguments, configuration, losses, script, write_datasets
from tests.ops.test_photometric import random_rows, torchvision_view

TINY = Variant("tiny", 32, 4, 2, (0, 1, 2, 3))
COUNTS = {"a": 2, "b": 3, "c": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_datasets(tmp_path_factory.mktemp("data"))


def model(**max_blur_sigma: float) -> MultiDataset:
    torch.manual_seed(0)
    segmentor = build_segmentor(TINY, {"a": 3, "b": 4, "c": 2}, 32, channels=8, expert_channels=8)
    task_losses = {task: TaskLoss() for task in segmentor.tasks}
    return MultiDataset(segmentor, {}, task_losses, max_blur_sigma=max_blur_sigma).eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 2, (7, 32, 32), dtype=torch.uint8, generator=generator)
    labels[:, :8] = 255
    return images, labels


def seen(network: MultiDataset, rows: torch.Tensor | None) -> torch.Tensor:
    """The images in [0, 1] that the network gets, before normalisation."""
    images, labels = batch()
    caught = []
    network._prepare = lambda x: (caught.append(x), MultiDataset._prepare(network, x))[1]  # type: ignore
    network.loss(images, labels, COUNTS, rows)
    return caught[0]


def test_every_image_of_a_task_is_changed_as_by_torchvision_alone() -> None:
    rows = random_rows(7)
    images = batch()[0].float() / 255
    found = seen(model(a=2.0, b=2.0, c=2.0), rows)
    expected = torch.stack([torchvision_view(image, row) for image, row in zip(images, rows, strict=True)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    assert ((found - images).abs().amax((1, 2, 3)) > 0.05).all()


def test_tasks_without_it_are_left_as_they_are_to_the_bit() -> None:
    rows, images = random_rows(7), batch()[0].float() / 255
    found = seen(model(a=2.0, c=3.0), rows)
    changed = [not torch.equal(one, other) for one, other in zip(found, images, strict=True)]
    assert changed == [True, True, False, False, False, True, True]
    alone = seen(model(a=2.0), rows)
    assert torch.equal(found[:2], alone[:2]), "the blur of another task does not matter"
    assert torch.equal(seen(model(), rows), images) and torch.equal(seen(model(a=2.0), None), images)


def test_the_loss_is_that_of_the_changed_images() -> None:
    """Ignored pixels stay ignored, and no gradient goes through the augmentation."""
    rows, (images, labels) = random_rows(7), batch()
    network = model(b=2.0)
    given = network.loss(images, labels, COUNTS, rows)
    views = [torchvision_view(image.float() / 255, row) for image, row in zip(images, rows, strict=True)]
    views[:2], views[5:] = (images[:2].float() / 255).unbind(), (images[5:].float() / 255).unbind()
    expected = network.loss(torch.stack(views), labels, COUNTS)
    for name, value in expected.items():
        torch.testing.assert_close(given[name], value, rtol=0, atol=1e-3)
    everything_ignored = network.loss(images, torch.full_like(labels, 255), COUNTS, rows)
    assert everything_ignored["loss"] == 0


def source(root: Path, task: str, photometric: Photometric | None) -> LabeledImages:
    split = pair_folders(Path(f"{task}/train/images"), Path(f"{task}/train/masks"), root)
    return LabeledImages(
        split, get_table({"classes": TASKS[task]}, task), WeakAugmentation(32), task, photometric
    )


def test_rows_are_drawn_after_the_geometry_and_neutral_where_there_are_none(root: Path) -> None:
    ranges = Photometric(jitter_p=1, gray_p=0.5, blur_p=1)
    with_rows = MultiSourceDataset([source(root, "ponds", None), source(root, "roofs", ranges)], seed=3)
    without = MultiSourceDataset([source(root, task, None) for task in TASKS], seed=3)
    draws = [Draw(0, 1, 4), Draw(1, 0, 7), Draw(1, 5, 8)]
    ours, plain = (TasksCollate(("a", "b"))([data[draw] for draw in draws]) for data in (with_rows, without))
    assert torch.equal(ours["images"], plain["images"]) and torch.equal(ours["labels"], plain["labels"])
    assert np.array_equal(plain["photometric"].numpy(), np.tile(NEUTRAL, (3, 1)))
    rows = ours["photometric"]
    assert rows.dtype == torch.float32 and torch.equal(rows[0], torch.from_numpy(NEUTRAL))
    assert (rows[1:, 5] > 0).all() and not torch.equal(rows[1], rows[2])
    rng = sample_rng(3, 1, 7)
    WeakAugmentation(32).draw(rng, np.zeros((40, 48, 3), np.uint8))
    assert np.array_equal(rows[1].numpy(), draw_photometric(rng, ranges)), "keyed by the sample alone"


@pytest.mark.slow
def test_training_has_it_unless_it_is_switched_off(root: Path, tmp_path: Path) -> None:
    """On by default; in the first step, a task without it has the same loss as in a run without any."""
    off = {f"tasks.{task}.photometric": False for task in TASKS}
    runs = {"on": {}, "off": off, "ponds": {"tasks.ponds.photometric": False}}
    logged = {}
    for name, changes in runs.items():
        run = tmp_path / name
        assert script().main(arguments(root, run, **{"schedule.epochs": 1}, **changes)) == 0
        logged[name] = dict(losses(run)[1])
    assert logged["on"]["loss_roofs"] != logged["off"]["loss_roofs"]
    assert logged["on"]["loss_ponds"] != logged["off"]["loss_ponds"] == logged["ponds"]["loss_ponds"]
    assert logged["ponds"]["loss_roofs"] == logged["on"]["loss_roofs"]


def config(root: Path, tmp_path: Path, *overrides: str) -> MDFConfig:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(configuration(root)))
    return load_config(MDFConfig, path, list(overrides))


def test_switch_and_ranges(root: Path, tmp_path: Path) -> None:
    values = {
        "false": None,
        "null": None,
        "true": Photometric(),
        "{hue: 0.1, blur_p: 0}": Photometric(hue=0.1, blur_p=0),
    }
    for text, expected in values.items():
        section = config(root, tmp_path, f"tasks.ponds.photometric={text}").tasks["ponds"].photometric
        assert section == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{hu: 0.1}", "unknown key 'tasks.roofs.photometric.hu' - did you mean 'hue'"),
        ("{hue: 0.7}", "tasks.roofs.photometric.hue = 0.7: .*less than or equal to 0.5"),
        ("{blur_sigma: [3, 1]}", "the first value must not be larger"),
        (
            "{blur_sigma: [1, 11]}",
            "blur_sigma 11.0 has a kernel radius of 33 pixels, which must be smaller than crop 32",
        ),
        ("strong", "tasks.roofs.photometric = 'strong'"),
    ],
)
def test_bad_values(root: Path, tmp_path: Path, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(root, tmp_path, f"tasks.roofs.photometric={value}")
