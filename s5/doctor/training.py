"""Checks of training: image formats, a batch from a loader worker, imports, and a FixMatch step."""

import math
import time
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from s5.doctor import Finding, describe, ok
from s5.doctor.device import choose
from s5.doctor.environment import INSTALL, SHARED_MEMORY

PROGRAMS = {
    "pre-training": "s5.segmentation.s4p",
    "fine-tuning": "s5.segmentation.mdf",
    "detection": "s5.detection.experiment",
}
COMPRESSIONS = ("LZW", "DEFLATE", "JPEG", "ZSTD", "WEBP", "LERC")
DRIVERS = {"GTiff": True, "PNG": True, "COG": False, "JPEG": False, "JP2OpenJPEG": False}  # needed or not
EPSG = 32633
SIZE, CLASSES = 64, 3
SCALED_STEPS = 12  # enough for a loss scaler, which halves its scale in each step, to find it
BATCH, CROP, WORKERS = 24, 512, 8  # as in the published pre-training


def check_images(chosen: str) -> Iterator[Finding]:
    """Readable image formats, GDAL's drivers, and its database of coordinate reference systems."""
    import cv2
    import numpy as np
    import rasterio
    from rasterio.crs import CRS

    with rasterio.Env() as environment:
        drivers = environment.drivers()
        compressions = [name for name in COMPRESSIONS if _can_compress(name)]
    lacking = [name for name, needed in DRIVERS.items() if needed and name not in drivers]
    there = ", ".join(name for name in DRIVERS if name in drivers)
    text = f"{rasterio.__gdal_version__}: {there}; TIFF with {', '.join(compressions)}"
    if lacking:
        advice = "pip install --force-reinstall rasterio, whose wheels include them"
        yield Finding("error", "GDAL", f"{text}; without {', '.join(lacking)}", advice)
    else:
        yield ok("GDAL", text)
    try:
        CRS.from_epsg(EPSG).to_wkt()
        yield ok("PROJ", f"EPSG:{EPSG} is known")
    except Exception as error:
        advice = "another program's database is used: unset PROJ_DATA, PROJ_LIB and GDAL_DATA"
        yield Finding("warning", "PROJ", describe(error), advice)
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    broken = [end for end in (".png", ".jpg", ".webp", ".bmp") if not _can_decode(cv2, end, pixels)]
    if broken:
        advice = "pip install --force-reinstall opencv-python-headless"
        yield Finding("error", "OpenCV", f"{cv2.__version__} cannot read {', '.join(broken)}", advice)
    else:
        yield ok("OpenCV", f"{cv2.__version__} reads PNG, JPEG, WebP, BMP")


def check_loader(chosen: str) -> Iterator[Finding]:
    """A batch of the published size from a loader worker."""
    import shutil

    from s5.data.loaders import PREFETCH, stop_workers
    from s5.data.worker_pool import Loader, memfd_works

    images: Any = _Images()  # not a subclass of Dataset, which would import PyTorch before the check
    loader = Loader(images, batch_size=BATCH, num_workers=1, persistent_workers=True, collate_fn=_stack)
    try:
        batch = next(iter(loader))
    except Exception as error:
        yield Finding(
            "error", "loader workers", describe(error), "data.workers=0 (workers=0) works without them"
        )
        return
    finally:
        stop_workers(loader)
    text = f"a batch of {batch.nbytes / 2**20:.0f} MiB arrived"
    if memfd_works() or not SHARED_MEMORY.is_dir():
        yield ok("loader workers", f"{text} in anonymous memory, which /dev/shm does not limit")
        return
    free, needed = shutil.disk_usage(SHARED_MEMORY).free, batch.nbytes * PREFETCH * WORKERS
    text += f" through /dev/shm; {WORKERS} workers need {needed / 2**20:.0f} MiB of it per process"
    if free < needed:
        advice = "docker run --shm-size=8g or --ipc=host; or fewer workers (data.workers, workers)"
        yield Finding("warning", "loader workers", text, advice)
    else:
        yield ok("loader workers", text)


def check_programs(chosen: str) -> Iterator[Finding]:
    """Whether the modules of all three trees can be imported."""
    for name, module in PROGRAMS.items():
        try:
            import_module(module)
        except Exception as error:
            advice = f"see the packages above; {INSTALL}"
            yield Finding("error", name, f"cannot be imported: {describe(error)}", advice)
        else:
            yield ok(name, "can be imported")


def check_step(chosen: str) -> Iterator[Finding]:
    """Two steps of FixMatch with a small ViT on the device; the second is timed."""
    import torch

    from s5.compat.memory import peak_memory
    from s5.compat.precision import resolve_precision
    from s5.segmentation.methods.fixmatch import FixMatch, FixMatchSettings
    from s5.segmentation.segmentor import build_segmentor
    from s5.segmentation.windows import Inference
    from s5.training.optim import build_optim_wrapper, param_groups

    device = choose(chosen)
    dtype = resolve_precision("auto", device)
    segmentor = build_segmentor("vit_t", {"doctor": CLASSES}, SIZE, channels=16)
    model = FixMatch(segmentor, {"doctor": Inference()}, dtype, FixMatchSettings(conf_thresh=0.0)).train()
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = build_optim_wrapper(param_groups(model.network, 1e-4, 0.01), 1e-4, (0.9, 0.999), dtype)
    batch = _fixmatch_batch(device)
    # With fp16, the loss scaler may need some steps until the gradients are finite.
    for number in range(1, (SCALED_STEPS if optimizer.loss_scaler else 2) + 1):
        start = time.perf_counter()
        losses = model(**batch, mode="loss")
        optimizer.update_params(losses["loss"])
        outcome = optimizer.report.read()  # synchronises with the device
        seconds, loss = time.perf_counter() - start, outcome.loss
        # Steps with non-finite gradients are skipped, so the weights stay finite.
        finite = not outcome.fault and math.isfinite(loss) and math.isfinite(float(optimizer.grad_norm))
        if number >= 2 and finite:
            break
    text = (
        f"FixMatch with ViT-T on {device}, {str(dtype or torch.float32).removeprefix('torch.')}: "
        f"loss {loss:.3f}, {seconds:.2f} s, peak memory {peak_memory(device) / 2**20:.0f} MiB"
    )
    if finite:
        yield ok("training step", text)
    else:
        advice = "report this page; until then try precision=fp32"
        yield Finding("error", "training step", f"{text}; loss or gradients are not finite", advice)


class _Images:
    """Constant samples that need no files."""

    def __len__(self) -> int:
        return BATCH

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401
        import torch

        return torch.full((3, CROP, CROP), index, dtype=torch.uint8)


def _stack(samples: list) -> Any:  # noqa: ANN401
    import torch

    return torch.stack(samples)


def _fixmatch_batch(device: Any) -> dict[str, Any]:  # noqa: ANN401
    """Batch of two labeled and two unlabeled noise images, see `s5.data.loaders.FixMatchCollate`."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (2, SIZE, SIZE)
    views = {
        "photometric": torch.tensor([1.1, 0.9, 1.0, 0.02, 0.0, 0.5]).expand(1, 2, 6).to(device),
        "boxes": torch.tensor([8, 8, 40, 40]).expand(1, 2, 4).to(device),
        "partner": torch.tensor([[1, 0]], device=device),
    }
    return {
        "images": torch.randint(0, 256, (4, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator).to(
            device
        ),
        "labels": torch.randint(0, CLASSES, shape, dtype=torch.uint8, generator=generator).to(device),
        "padding": torch.zeros(shape, dtype=torch.bool, device=device),
        "views": views,
    }


def _can_decode(cv2: Any, ending: str, pixels: Any) -> bool:  # noqa: ANN401
    try:
        _, data = cv2.imencode(ending, pixels)
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return False
    return image is not None and image.shape == pixels.shape


def _can_compress(name: str) -> bool:
    import numpy as np
    from rasterio.errors import NotGeoreferencedWarning, RasterioError
    from rasterio.io import MemoryFile

    profile = {"driver": "GTiff", "width": 16, "height": 16, "count": 1, "dtype": "uint8", "compress": name}
    pixels = np.zeros((1, 16, 16), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with MemoryFile() as file:
                with file.open(**profile) as dataset:
                    dataset.write(pixels)
                with file.open() as dataset:
                    return bool((dataset.read() == pixels).all())
        except RasterioError:
            return False
