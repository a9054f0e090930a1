"""Semi-supervised methods by the name that `method:` in the configuration gives them.

A method is a class and a line here. It subclasses :class:`~s5.segmentation.methods.fixmatch.FixMatch` and
overrides one of its steps; its settings come from the section that its `section` names.
"""

from s5.segmentation.methods.fixmatch import FixMatch

METHODS: dict[str, type[FixMatch]] = {
    "fixmatch": FixMatch,
}
