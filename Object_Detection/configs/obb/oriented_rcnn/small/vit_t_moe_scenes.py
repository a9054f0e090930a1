"""ViT-T with experts on two label sets of the embedded scenes: small enough for two CPU cores.

    python scripts/quickstart_objects.py work_dirs/quickstart/data/det                      writes the scenes
    python Object_Detection/tools/train.py Object_Detection/configs/obb/oriented_rcnn/small/vit_t_moe_scenes.py

scripts/quickstart.sh runs both, from the weights of its S4P stage.
"""

data_root = "work_dirs/quickstart/data/det"  # from the repository's root, where both commands above run
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
size = 256  # scenes of 128 pixels are enlarged: their objects then have the size of the smallest anchors
workers = 1

model = dict(
    expert_channels=48,  # a quarter of ViT-T's 192
    channels=64,
    fc_channels=256,
    drop_path=0.0,
    proposals=300,
    anchors=128,
    rois=128,
    max_per_img=100,
)
optim = dict(
    lr=5e-4,
    layer_decay=1.0,  # S4P's weights are minutes old: nothing to keep
    warmup_iters=20,
)
schedule = dict(
    epochs=10,
    milestones=(7, 9),
    steps_per_epoch=20,
    val_interval=10,  # once, at the end: nothing is chosen on the validation scenes
    checkpoint_interval=5,
    keep_checkpoints=1,
    log_interval=20,
)
seed = 0
