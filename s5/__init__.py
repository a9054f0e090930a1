"""S5: semi-supervised semantic segmentation pre-training and its fine-tuning for remote sensing."""

from s5.compat import mmcv_ext

__version__ = "0.1.0"

# Here and not in a function, so that spawned workers get it with whatever they import from this package.
mmcv_ext.install()
