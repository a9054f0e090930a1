"""What every command that predicts image files says of bad input."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from s5.command import run_command
from s5.errors import ConfigError, DataError


class PredictContract:
    """Tests that each command inherits; fixtures are `checkpoint` and `images`, a folder with `a.png`."""

    tasks: Sequence[str]
    format: str  # one that the command writes
    results: Sequence[str]  # its files for `images`
    bad_settings: Sequence[tuple[tuple[str, ...], str]]  # options and the message of the error

    def predict(self, checkpoint: Path, given: object, out: Path, *options: object) -> int:
        """Run the command."""
        raise NotImplementedError

    def test_unreadable_images_are_named_and_the_others_done(
        self, checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        whole = (images / "a.png").read_bytes()
        (images / "cut.png").write_bytes(whole[: len(whole) // 2])
        (images / "text.jpg").write_text("no image")
        (images / "empty.tif").write_bytes(b"II*\0")
        out, task = tmp_path / "out", self.tasks[0]
        assert self.predict(checkpoint, images, out, "--tasks", task, "--formats", self.format) == 1
        said = capsys.readouterr().err
        for name in ("cut.png: truncated PNG", "text.jpg: is not an image", "empty.tif: damaged or"):
            assert f"{images}/{name}" in said
        assert "3 images could not be read; all others are finished" in said
        folder = out / task / self.format
        assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == self.results

    def test_unknown_task_lists_the_known(self, checkpoint: Path, images: Path, tmp_path: Path) -> None:
        known = ", ".join(self.tasks)
        with pytest.raises(ConfigError, match=f"unknown task 'lakes'; this model's tasks: {known}"):
            self.predict(checkpoint, images, tmp_path / "out", "--tasks", f"{self.tasks[0]},lakes")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("given", "message"),
        [("nothing", "no such file or folder"), ("*.tif", "no images found"), ("empty", "no images found")],
    )
    def test_no_images_is_an_error(
        self, checkpoint: Path, images: Path, tmp_path: Path, given: str, message: str
    ) -> None:
        (images / "empty").mkdir()
        for inputs in (images / given, [images / "a.png", images / given]):
            with pytest.raises(DataError, match=message):
                self.predict(checkpoint, inputs, tmp_path / "out")

    def test_results_in_the_folder_of_the_images_are_an_error_that_says_so(
        self, checkpoint: Path, images: Path
    ) -> None:
        with pytest.raises(DataError, match=r"images is also the folder of the results \(--out\)"):
            self.predict(checkpoint, images, images / "deep/..")
        assert not (images / self.tasks[0]).exists()

    def test_results_below_the_input_are_no_input(self, checkpoint: Path, images: Path) -> None:
        options = ("--tasks", self.tasks[0], "--formats", self.format)
        for _ in range(2):
            assert self.predict(checkpoint, images, images / "out", *options) == 0
        folder = images / "out" / self.tasks[0]
        assert sum(path.is_file() for path in folder.rglob(f"{self.format}/**/*")) == len(self.results)

    def test_a_folder_that_cannot_be_written_is_an_error_with_the_way_out(
        self, checkpoint: Path, images: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "out").write_text("a file")
        with pytest.raises(ConfigError, match=r"out: cannot be written .*continue with --resume"):
            self.predict(checkpoint, images, tmp_path / "out")

    @pytest.mark.parametrize("option", [("--config", "other.yaml"), ("--cfg-options", "crop=64")])
    def test_a_configuration_that_is_not_read_is_an_error(
        self, checkpoint: Path, images: Path, tmp_path: Path, option: tuple[str, str]
    ) -> None:
        with pytest.raises(ConfigError, match=f"{option[0]}: .*is self-describing"):
            self.predict(checkpoint, images, tmp_path / "out", *option)

    def test_settings_that_make_no_sense_are_an_error(
        self, checkpoint: Path, images: Path, tmp_path: Path
    ) -> None:
        for options, message in self.bad_settings:
            with pytest.raises(ConfigError, match=message):
                self.predict(checkpoint, images, tmp_path / "out", *options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--formats", "{format},shp"), "--formats/--kinds: shp: must be one of "),
            (("--formats", ","), "--formats/--kinds: ',' contains no name"),
            (("--task", ","), "--tasks/--task: ',' contains no name"),
        ],
    )
    def test_names_that_do_not_exist(
        self,
        checkpoint: Path,
        images: Path,
        tmp_path: Path,
        options: tuple[str, str],
        message: str,
        capsys: pytest.CaptureFixture,
    ) -> None:
        option, names = options
        with pytest.raises(SystemExit):
            self.predict(checkpoint, images, tmp_path / "out", option, names.format(format=self.format))
        assert message in capsys.readouterr().err

    def test_a_missing_checkpoint_is_no_traceback(
        self, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        assert run_command(lambda: self.predict(tmp_path / "none.pth", images, tmp_path / "out")) == 1
        assert f"error: no checkpoint {tmp_path}/none.pth" in capsys.readouterr().err
