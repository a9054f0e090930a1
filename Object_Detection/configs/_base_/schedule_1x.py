"""The published schedule: 12 epochs, learning rate divided by 10 after epochs 8 and 11."""

optim = dict(
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=0.05,
    exempt_norms=True,  # no weight decay on norms and the positional embedding
    layer_decay=0.9,
    warmup_iters=500,
    clip_grad=35.0,
)
schedule = dict(
    epochs=12,
    milestones=(8, 11),
    gamma=0.1,
    val_interval=1,
    checkpoint_interval=1,
    keep_checkpoints=2,
    log_interval=50,
    # The run stops after this many steps in a row with non-finite loss or gradients, which are skipped,
    # or when they exceed this share of the last 1000 steps.
    max_skipped_in_a_row=10,
    max_skipped_share=0.01,
)
