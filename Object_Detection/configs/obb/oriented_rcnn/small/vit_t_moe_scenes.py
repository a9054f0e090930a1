"""ViT-T with experts on two label sets of the embedded scenes: small enough for two CPU cores.

scripts/quickstart.sh writes the scenes and trains on them, with backbone and weights of its S4P stage. By
hand, from the repository's root:

    python -m scenes.det_data work_dirs/quickstart/data/det
    python Object_Detection/tools/train.py THIS_FILE
"""

data_root = "work_dirs/quickstart/data/det"
load_from = None

backbone = "vit_t_moe"
tasks = dict(
    craft=dict(
        classes=("ship", "plane"),
        leave_out=("vehicle",),  # too small for patches of 16 pixels
        train=dict(
            images="craft/labeled/scenes/train/images", annotations="craft/labeled/scenes/train/labelTxt"
        ),
        val=dict(images="craft/labeled/scenes/val/images", annotations="craft/labeled/scenes/val/labelTxt"),
        batch_size=2,
        skip_empty=True,
    ),
    buildings=dict(
        classes=("building",),
        train=dict(
            images="buildings/labeled/scenes/train/images",
            annotations="buildings/labeled/scenes/train/buildings",
        ),
        val=dict(
            images="buildings/labeled/scenes/val/images", annotations="buildings/labeled/scenes/val/buildings"
        ),
        batch_size=2,
        skip_empty=True,
    ),
)
size = 256  # enlarges the scenes of 128 pixels, so that objects have the size of the smallest anchors
workers = 1

model = dict(
    expert_channels=48,  # a quarter of ViT-T's 192
    channels=64,
    fc_channels=256,
    fpn_norm=True,  # S4P's maps have a standard deviation of 9 after minutes of training
    drop_path=0.0,
    proposals=300,
    anchors=128,
    rois=128,
    max_per_img=100,
)
optim = dict(
    lr=1e-3,
    layer_decay=1.0,  # S4P was only minutes long: nothing to preserve
    warmup_iters=50,
    clip_grad=1.0,
)
schedule = dict(
    epochs=26,
    milestones=(20, 24),
    steps_per_epoch=14,
    val_interval=26,  # once, at the end: nothing is selected on the validation scenes
    checkpoint_interval=13,
    keep_checkpoints=1,
    log_interval=20,
)
seed = 0
