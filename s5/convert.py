"""Convert a checkpoint from one layout to another.

    python -m s5.convert vit_b_s4p_upernet.pth published.pth --to published
    python -m s5.convert released/vit_b_moe_mdf.pth mine.pth --to s5
    python -m s5.convert vit_b_s4p.pth timm.pth --to timm
    python -m s5.convert vit_b_moe_mdf_best.pth hub/vit_b_moe_mdf.safetensors --to s5
    python -m s5.convert vit_b_mdf.pth loveda.pth --to s5 --task loveda
    python -m s5.convert --list

The layout of SRC is recognised by its keys. Nothing in SRC is executed, and tensors keep their dtype. Beside
a DST that ends in .safetensors, a model card for the Hugging Face hub is written (README.md).
"""

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s5.checkpoints.adapters import reduce_to_task
from s5.checkpoints.layouts import LAYOUTS, Layout, Weights, Written, convert, get_layout
from s5.checkpoints.layouts.s5 import S5
from s5.checkpoints.reading import as_safetensors, find_checkpoint, read_checkpoint, save_atomic
from s5.command import run_command
from s5.errors import CheckpointError, shorten
from s5.model_card import FILE, MARK, UNKNOWN_LICENSE, model_card, source_of

SAFETENSORS = ".safetensors"
SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", SAFETENSORS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    args = _parse_args(argv)
    return run_command(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    if args.list:
        print(layout_table())
    else:
        convert_file(
            args.src, args.dst, get_layout(args.to), args.tasks, args.overwrite, args.task, args.license
        )
    return 0


def convert_file(
    src: Path,
    dst: Path,
    layout: Layout,
    tasks: Sequence[str] = (),
    overwrite: bool = False,
    task: str | None = None,
    licence: str = UNKNOWN_LICENSE,
) -> None:
    """Convert a checkpoint file and print a report.

    Args:
        src: The checkpoint, of any known layout.
        dst: The file to write.
        layout: The layout to write.
        tasks: Names of the experts of `src`, in order, if the file does not contain them.
        overwrite: Replace an existing file.
        task: Write plain weights of this task alone, into which its adapters and experts are merged.
        licence: Licence in the model card.

    Raises:
        CheckpointError: `src` cannot be read or converted, or `dst` cannot be written.
    """
    src = find_checkpoint(src)
    _check_target(src, dst, overwrite)
    content = read_checkpoint(src)
    try:
        weights = convert(content, tasks)
        if tasks and weights.experts != tuple(tasks):
            has = f"has experts for {', '.join(weights.experts)}" if weights.experts else "has no experts"
            raise CheckpointError(f"--tasks {','.join(tasks)}: the checkpoint {has}; omit --tasks")
        meta = _own_meta(content) if weights.layout == S5.name else None
        weights, meta = reduce_to_task(weights, meta, task, keep=isinstance(layout, S5))
        written = layout.from_ours(weights)
    except CheckpointError as error:
        raise CheckpointError(f"{src}: {error}") from error
    if dst.suffix == SAFETENSORS:
        packed = as_safetensors(written.state, meta if isinstance(layout, S5) else None)
        sha256 = hashlib.sha256(packed).hexdigest()
        card = model_card(dst, sha256, layout, weights, meta, source_of(src, meta), licence)
        save_atomic(packed, dst)
        save_atomic(card.encode(), dst.with_name(FILE))
    else:
        save_atomic(_as_file(layout, written, meta), dst)
    print(report(src, dst, layout, weights, written, meta))


def report(
    src: Path, dst: Path, layout: Layout, weights: Weights, written: Written, meta: Mapping[str, Any] | None
) -> str:
    """Format what was read, written and left out, one line each."""
    heads = f"heads of {', '.join(weights.heads)}" if weights.heads else "no heads"
    experts = f", experts for {', '.join(weights.experts)}" if weights.experts else ""
    lines = [
        f"{src}: {weights.layout}, {len(weights.backbone)} tensors of the backbone{experts}, {heads}",
        *(f"  note: {note}" for note in weights.notes),
        f"{dst}: {layout.name}, {len(written.state)} tensors",
        *(f"  note: {note}" for note in written.notes),
        *([f"{dst.with_name(FILE)}: model card"] if dst.suffix == SAFETENSORS else []),
    ]
    left_out = (*written.left_out, *weights.unused)
    if left_out:
        lines.append(f"  left out: {len(left_out)} tensors ({shorten(left_out)})")
    if isinstance(layout, S5):
        kept = f"kept ({', '.join(meta)})" if meta else "none: commands need --config and --backbone"
        lines.append(f"  metadata: {kept}")
    elif meta:
        lines.append("  left out: the metadata (backbone, tasks, classes), which this layout does not have")
    return "\n".join(lines)


def layout_table() -> str:
    """Format all layouts with the keys by which they are recognised, and whether they can be written."""
    width = max(len(layout.key) for layout in LAYOUTS)
    lines = []
    for layout in LAYOUTS:
        lines.append(f"{layout.key:<{width}}  {layout.name}: {layout.example}")
        if layout.unwritable:
            lines.append(f"{'':<{width}}  read only: {layout.unwritable}")
    return "\n".join(lines)


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m s5.convert",
        description=__doc__,
        epilog=f"layouts:\n{layout_table()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("src", type=Path, nargs="?", help="checkpoint of any layout below")
    parser.add_argument("dst", type=Path, nargs="?", help="file to write")
    parser.add_argument("--to", metavar="LAYOUT", help="layout to write: " + ", ".join(_writable()))
    parser.add_argument(
        "--tasks",
        type=lambda names: names.split(","),
        default=[],
        metavar="A,B",
        help="names of the experts in order, if SRC only numbers them",
    )
    parser.add_argument(
        "--task", metavar="NAME", help="write this task alone, with its LoRA adapters and experts merged"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DST if it exists")
    parser.add_argument(
        "--license",
        default=UNKNOWN_LICENSE,
        metavar="ID",
        help="licence in the model card, such as cc-by-4.0 (default: unknown)",
    )
    parser.add_argument("--list", action="store_true", help="list the layouts")
    args = parser.parse_args(argv)
    if not args.list and None in (args.src, args.dst, args.to):
        parser.error("give SRC, DST and --to LAYOUT, or --list")
    return args


def _writable() -> list[str]:
    return [layout.key for layout in LAYOUTS if not layout.unwritable]


def _check_target(src: Path, dst: Path, overwrite: bool) -> None:
    if dst.suffix not in SUFFIXES:
        raise CheckpointError(
            f"{dst}: choose a name that ends in {', '.join(SUFFIXES[:-1])} (written with torch.save) or "
            f"{SAFETENSORS} (with a model card beside it)"
        )
    if dst.is_dir():
        raise CheckpointError(f"{dst} is a folder: name the file to write")
    if dst.exists() and (not overwrite or dst.samefile(src)):
        same = dst.samefile(src)
        raise CheckpointError(
            f"{dst} {'is the file to convert: choose another name' if same else 'exists: add --overwrite'}"
        )
    card = dst.with_name(FILE)
    if dst.suffix == SAFETENSORS and card.exists():
        ours = MARK in card.read_text(encoding="utf-8", errors="replace")
        if not (ours and overwrite):
            hint = (
                "add --overwrite" if ours else "it is no model card of this command, so choose another folder"
            )
            raise CheckpointError(f"{card} exists, where the model card would be written: {hint}")


def _own_meta(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Metadata of a weight file of this package; None if it has none."""
    meta = content.get("meta")
    return dict(meta) if isinstance(meta, Mapping) and isinstance(meta.get("backbone"), str) else None


def _as_file(layout: Layout, written: Written, meta: Mapping[str, Any] | None) -> dict[str, Any]:
    content: dict[str, Any] = {layout.container: written.state} if layout.container else dict(written.state)
    if isinstance(layout, S5) and meta:
        content["meta"] = dict(meta)
    return content


if __name__ == "__main__":
    sys.exit(main())
