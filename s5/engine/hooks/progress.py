"""A progress bar on a terminal; elsewhere the plain log lines suffice."""

import logging
import sys

from mmengine.hooks import Hook
from mmengine.runner import Runner
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from s5.engine.hooks.safety import SafetyHook


class ProgressHook(Hook):
    """Shows iteration, rate, remaining time and loss of the main process when the console is a terminal."""

    priority = "LOWEST"

    def __init__(self, safety: SafetyHook) -> None:
        self._safety = safety  # has read the loss; reading it here would synchronise with the device
        self._bar: tqdm | None = None

    def before_train(self, runner: Runner) -> None:
        """Open the bar."""
        if runner.rank == 0 and sys.stdout.isatty():
            self._redirect = logging_redirect_tqdm(loggers=[runner.logger, logging.getLogger("s5")])
            self._redirect.__enter__()
            self._bar = tqdm(total=runner.max_iters, initial=runner.iter, unit="it", dynamic_ncols=True)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{self._safety.loss:.4f}", refresh=False)
            self._bar.update()

    def after_train(self, runner: Runner) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._redirect.__exit__(None, None, None)
