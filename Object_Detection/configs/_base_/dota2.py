"""DOTA-v2.0 as `python -m s5.data.prepare dota` writes it: 18 classes, windows of 1024 pixels."""

_dota = dict(
    classes="dota_v2",
    train=dict(  # on train and val together, as published: DOTA is scored by its server
        images=("dota/train/images", "dota/val/images"),
        annotations=("dota/train/annotations", "dota/val/annotations"),
        names=("dota/splits/train.txt", "dota/splits/val.txt"),
    ),
    val=dict(  # also trained on, so its scores only show that training works
        images="dota/val/images", annotations="dota/val/annotations", names="dota/splits/val.txt"
    ),
    test=dict(  # without labels; tools/test.py --split test --submit dota=FILE.zip
        images="dota/test-dev/images", names="dota/splits/test-dev.txt", windows=True
    ),
    batch_size=2,  # per GPU
    skip_empty=True,  # as is common
    train_difficult=True,
    ignore_below=2,  # pixels at the input
    whole="dota/val/whole",  # labels of the full images, which are scored
)
