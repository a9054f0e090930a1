"""Writes the resolved configuration beside the checkpoints."""

from pathlib import Path

from mmengine.hooks import Hook
from mmengine.runner import Runner

from s5.engine.config import Section, save_config

CONFIG_FILE = "config.yaml"


class ConfigFileHook(Hook):
    """Writes ``config.yaml`` when training begins.

    Not before: a run that is refused, as it does not fit the checkpoint that it is to go on from, must not
    replace the configuration of the run in the folder.
    """

    def __init__(self, cfg: Section) -> None:
        self.cfg = cfg

    def before_train(self, runner: Runner) -> None:
        """Write it."""
        if runner.rank == 0:
            save_config(self.cfg, Path(runner.work_dir) / CONFIG_FILE)
