"""Registry of semi-supervised methods, chosen by `method:` in the configuration.

A method is a subclass of :class:`~s5.segmentation.methods.fixmatch.FixMatch` that overrides parts of a step,
and an entry in `METHODS`. Its settings are in the configuration section named by its `section` attribute.
"""

from s5.segmentation.methods.fixmatch import FixMatch

METHODS: dict[str, type[FixMatch]] = {
    "fixmatch": FixMatch,
}
