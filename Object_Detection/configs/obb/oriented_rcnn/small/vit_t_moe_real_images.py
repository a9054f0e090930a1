"""ViT-T with experts on two small datasets of real images; experiments/real_images_det.py runs this.

`dota14` is an overfitting test, trained and scored on the same images: it shows that data, boxes, losses and
scores are consistent. `ucas_aod` has held-out images.
"""

data_root = "work_dirs/real_images_det/data"  # the script sets it
load_from = None  # S4P weights

backbone = "vit_t_moe"
_dota = dict(
    images="dota14/train/images", annotations="dota14/train/annotations", names="dota14/splits/train.txt"
)
tasks = dict(
    ucas=dict(
        classes=("plane", "car"),
        train=dict(
            images="ucas/train/images", annotations="ucas/train/annotations", names="ucas/splits/train.txt"
        ),
        val=dict(images="ucas/val/images", annotations="ucas/val/annotations", names="ucas/splits/val.txt"),
        whole="ucas/val/whole",
        batch_size=1,
        skip_empty=True,
    ),
    dota14=dict(
        classes="dota_v1",
        train=_dota,
        val=_dota,
        whole="dota14/train/whole",
        batch_size=3,
        skip_empty=True,
        flip=False,  # to overfit
    ),
)
size = 640
workers = 1

model = dict(
    expert_channels=48,  # a quarter of ViT-T's 192
    drop_path=0.0,
    channels=128,
    fpn_norm=True,  # the S4P weights are from a short run
    fc_channels=512,
    proposals=1000,
    rois=256,
    max_per_img=500,
)
optim = dict(lr=1e-3, layer_decay=1.0, warmup_iters=50, clip_grad=1.0)
schedule = dict(
    epochs=30,
    milestones=(22, 27),
    steps_per_epoch=50,
    val_interval=10,
    checkpoint_interval=1,
    keep_checkpoints=1,
    log_interval=25,
)
seed = 0
