"""A contact sheet that shows the predictions of several trained models side by side."""

from collections.abc import Mapping
from pathlib import Path

import torch

import s5
from s5.data.image_io import write_image
from s5.data.sources import ValidationImages
from s5.data.splits import Split
from s5.training.hooks.pictures import colored, contact_sheet, legend

ROWS = 4


@torch.inference_mode()
def write_sheet(path: Path, models: Mapping[str, Path], task: str, split: Path, root: Path) -> None:
    """Write image, ground truth and the prediction of every model, for a few images spread over a split.

    A second sheet, `<name>_predictions`, has only the predictions, for data that may not be redistributed.

    Args:
        path: Output file.
        models: Weight files of multi-dataset training.
        task: Task of the images and classes.
        split: The labeled images.
        root: Data root of the split.
    """
    predictors = [s5.load(file, "cpu", "fp32", tasks=[task]) for file in models.values()]
    table = predictors[0].spec.tables[task]
    images = ValidationImages(Split(split, root), table, task)
    tiles, predictions = [], []
    for index in torch.linspace(0, len(images) - 1, min(ROWS, len(images))).long().tolist():
        item = images[index]
        photo = item["images"]
        tiles.append([photo.permute(1, 2, 0).numpy(), colored(item["labels"], table)])
        predictions.append([colored(predictor.model.predict(photo, task), table) for predictor in predictors])
    rows = [[*tile, *row] for tile, row in zip(tiles, predictions, strict=True)]
    names, entries = list(models), legend(table, "no label")
    write_image(path, contact_sheet(rows, ["image", "truth", *names], entries))
    write_image(path.with_stem(f"{path.stem}_predictions"), contact_sheet(predictions, names, entries))
