"""DIOR-R as `python -m s5.data.prepare dior_r` writes it: 20 classes, images of 800 pixels."""

_dior = dict(
    classes="dior_r",
    train=dict(  # on train and val together, as is common
        images=("dior_r/train/images", "dior_r/val/images"),
        annotations=("dior_r/train/annotations", "dior_r/val/annotations"),
        names=("dior_r/splits/train.txt", "dior_r/splits/val.txt"),
    ),
    val=dict(  # the test set, on which the best checkpoint is selected: report the last one
        images="dior_r/test/images",
        annotations="dior_r/test/annotations",
        names="dior_r/splits/test.txt",
    ),
    batch_size=2,  # per GPU
    skip_empty=True,  # as is common
    train_difficult=True,
)
