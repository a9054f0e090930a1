"""DIOR-R as `python -m s5.data.prepare dior_r` writes it: 20 classes, images of 800 pixels."""

_dior = dict(
    classes="dior_r",
    train=dict(  # on train and val together, as the field does
        images=("dior_r/train/images", "dior_r/val/images"),
        annotations=("dior_r/train/annotations", "dior_r/val/annotations"),
        names=("dior_r/splits/train.txt", "dior_r/splits/val.txt"),
    ),
    val=dict(  # the test set: the best checkpoint of a run is chosen on it, so report the last
        images="dior_r/test/images",
        annotations="dior_r/test/annotations",
        names="dior_r/splits/test.txt",
    ),
    batch_size=2,  # per GPU
    skip_empty=True,  # as the field does
    train_difficult=True,
)
