"""Milliseconds per image of every photometric operation: S5, torchvision (image by image) and Kornia."""

import argparse
import importlib.util
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from benchmarks.timing import device_name, interleaved, markdown_table
from s5.ops import photometric as ours

Operation = Callable[[Tensor, Tensor], object]
TAPS = (13, 13)  # of the blur: radius 3 sigma for sigma up to 2


def s5_operations() -> dict[str, Operation]:
    """The package's own operations, on images one at a time as it does on a CPU, batched on a GPU."""
    operations = {
        "brightness": ours.adjust_brightness,
        "contrast": ours.adjust_contrast,
        "saturation": ours.adjust_saturation,
        "hue": ours.adjust_hue,
        "grayscale": ours.adjust_saturation,
        "blur": ours.gaussian_blur,
    }
    return {name: _split_on_cpu(operation) for name, operation in operations.items()}


def torchvision_operations() -> dict[str, Operation]:
    """Functionals of torchvision v2, which take one parameter per call."""
    return {
        "brightness": _each(tv.adjust_brightness),
        "contrast": _each(tv.adjust_contrast),
        "saturation": _each(tv.adjust_saturation),
        "hue": _each(tv.adjust_hue),
        "grayscale": _each(lambda image, _: tv.rgb_to_grayscale(image, 3)),
        "blur": _each(lambda image, sigma: tv.gaussian_blur(image, list(TAPS), [sigma, sigma])),
    }


def kornia_operations() -> dict[str, Operation]:
    """Batched functionals of Kornia with the same meaning; empty when it is not installed."""
    if importlib.util.find_spec("kornia") is None:
        return {}
    from kornia import color, enhance, filters

    return {
        "brightness": enhance.adjust_brightness_accumulative,
        "contrast": enhance.adjust_contrast_with_mean_subtraction,
        "saturation": enhance.adjust_saturation_with_gray_subtraction,
        "hue": lambda images, shift: enhance.adjust_hue(images, shift * 2 * math.pi),
        "grayscale": lambda images, _: color.rgb_to_grayscale(images).repeat(1, 3, 1, 1),
        "blur": lambda images, sigma: filters.gaussian_blur2d(images, TAPS, sigma[:, None].repeat(1, 2)),
    }


def run(args: argparse.Namespace) -> str:
    """Measure all operations; returns the table."""
    torch.set_num_threads(1)
    images = torch.rand(args.batch, 3, args.crop, args.crop, device=args.device)
    factor = torch.linspace(0.5, 1.5, args.batch, device=args.device)
    values = {"hue": (factor - 1) / 2, "grayscale": torch.zeros_like(factor), "blur": factor}
    libraries = {
        "S5": s5_operations(),
        "torchvision": torchvision_operations(),
        "Kornia": kornia_operations(),
    }
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    rows: list[Sequence[object]] = []
    for name in libraries["S5"]:
        tasks = {
            library: _task(operations[name], images, values.get(name, factor))
            for library, operations in libraries.items()
            if operations
        }
        seconds = interleaved(tasks, args.repeats, clock)
        rows.append((name, *(1000 * s / args.batch for s in seconds.values())))
    title = (
        f"Photometric operations, ms per image: batch {args.batch} of {args.crop}². "
        f"Device: {device_name(args.device)}"
        f"{', one thread' if args.device == 'cpu' else ''}."
    )
    header = ("operation", *(library for library, operations in libraries.items() if operations))
    return f"{title}\n\n{markdown_table(header, rows)}"


def _task(operation: Operation, images: Tensor, values: Tensor) -> Callable[[], object]:
    def task() -> None:
        operation(images, values)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)

    return task


def _each(operation: Callable[[Tensor, float], Tensor]) -> Operation:
    return lambda images, values: torch.stack(
        [operation(image, value) for image, value in zip(images, values.tolist(), strict=True)]
    )


def _split_on_cpu(operation: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    def apply(images: Tensor, values: Tensor) -> Tensor:
        if images.is_cuda:
            return operation(images, values)
        return torch.cat([operation(images[i : i + 1], values[i : i + 1]) for i in range(len(images))])

    return apply


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.photometric", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--batch", type=int, default=12, help="images")
    parser.add_argument("--crop", type=int, default=512, help="side of the images in pixels")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved rounds; the median is reported")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    print(run(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
