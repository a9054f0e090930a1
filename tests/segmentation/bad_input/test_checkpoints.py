"""Bad checkpoints: an error that says what to do, and nothing in them is run."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from s5.backbones import create_backbone
from s5.errors import CheckpointError, ConfigError, DataError
from s5.launch import LaunchError
from s5.training.command import command_parser
from tests.helpers.s4p_runs import CLASSES
from tests.segmentation.bad_input.training import assert_nothing_trained, train, write_weights


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("option", ["init", "resume"])
def test_code_in_a_checkpoint_is_not_run(
    root: Path, work_dir: Path, tmp_path: Path, option: str, trained: Path
) -> None:
    path, created = tmp_path / "evil.pth", tmp_path / "created"
    torch.save(torch.load(trained / "iter_4.pth", weights_only=False) | {"extra": Payload(created)}, path)
    if option == "init":
        assert train(root, work_dir, init=str(path)) == 0
        assert f"{path}: skipped objects other than weights (" in (work_dir / "train.log").read_text()
    else:
        with pytest.raises(CheckpointError, match=rf"{path} contains objects that are not read \(\w*\.open"):
            train(root, work_dir, resume=str(path))
        assert_nothing_trained(work_dir)
    assert not created.exists()


@pytest.mark.parametrize("option", ["init", "resume"])
def test_truncated_checkpoint(root: Path, work_dir: Path, tmp_path: Path, option: str, trained: Path) -> None:
    path = tmp_path / "cut.pth"
    path.write_bytes((trained / "iter_4.pth").read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=rf"{path} \(100000 bytes\) is truncated"):
        train(root, work_dir, **{option: str(path)})
    assert_nothing_trained(work_dir)


def test_truncated_latest_checkpoint(root: Path, work_dir: Path, trained: Path) -> None:
    shutil.copytree(trained, work_dir)
    (work_dir / "iter_4.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"{work_dir}/iter_4.pth is empty"):
        train(root, work_dir, "--resume")


def test_init_of_another_architecture(root: Path, work_dir: Path, tmp_path: Path) -> None:
    write_weights(tmp_path / "vit_s.pth", "vit_s")
    message = (
        r"vit_s.pth: weights of another architecture: width 384.* in the checkpoint, width 192.* in vit_t"
    )
    with pytest.raises(CheckpointError, match=message):
        train(root, work_dir, init=str(tmp_path / "vit_s.pth"))
    assert_nothing_trained(work_dir)


def test_init_of_other_bands(root: Path, work_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "vit_t_s2.pth"
    vit = create_backbone("vit_t", 64)
    state = {key: value for key, value in vit.state_dict().items() if "pyramid" not in key}
    state["patch_embed.proj.weight"] = torch.randn(192, 13, 16, 16)
    torch.save({"model": state}, path)
    with pytest.raises(
        CheckpointError, match=r"vit_t_s2\.pth: .*\n.*patch_embed\.proj\.weight: \(192, 13, 16, 16\)"
    ):
        train(root, work_dir, init=str(path))
    assert_nothing_trained(work_dir)
    shutil.rmtree(work_dir)
    with pytest.raises(CheckpointError, match=r"init_bands 4,3,14: .* has 13 channels, 1 to 13"):
        train(root, work_dir, "--init-bands", "4,3,14", init=str(path))
    shutil.rmtree(work_dir)
    assert train(root, work_dir, "--init-bands", "4,3,2", init=str(path), **{"optim.lr": 1e-30}) == 0
    assert "red, green and blue are channels 4, 3, 2 of 13" in (work_dir / "train.log").read_text()
    trained = torch.load(work_dir / "vit_t_s4p.pth")["state_dict"]["patch_embed.proj.weight"]
    torch.testing.assert_close(trained, state["patch_embed.proj.weight"][:, [3, 2, 1]])
    assert yaml.safe_load((work_dir / "config.yaml").read_text())["init_bands"] == [4, 3, 2]


@pytest.mark.parametrize("bands", ["3,2", "0,1,2", "1,2,3,4", "r,g,b", "3 2 1", ""])
def test_bands_that_are_no_three_channels(root: Path, work_dir: Path, bands: str) -> None:
    with pytest.raises(
        ConfigError, match="init_bands = .*three channel numbers, counted from 1.*such as 3,2,1"
    ):
        train(root, work_dir, f"--init-bands={bands}")


def test_bands_of_random_weights(root: Path, work_dir: Path) -> None:
    with pytest.raises(CheckpointError, match="init_bands 3,2,1 selects channels.*are random: omit it"):
        train(root, work_dir, "--init-bands", "3,2,1")


@pytest.mark.parametrize("init", ["mae", "weights/none.pth"])
def test_init_that_is_not_there(root: Path, work_dir: Path, init: str) -> None:
    place = (
        r"\S*/nowhere/vit_t.pth.*published .*then set init_paths.mae.vit_t"
        if init == "mae"
        else r"\S*/none.pth"
    )
    with pytest.raises(CheckpointError, match=rf"init '{init}': no file at {place}"):
        train(root, work_dir, init=init, **{"init_paths.mae.vit_t": "nowhere/vit_t.pth"})


def test_resume_that_is_not_there(root: Path, work_dir: Path) -> None:
    with pytest.raises(LaunchError, match=rf"--resume nowhere.pth: no such file; .*of {work_dir} is none"):
        train(root, work_dir, resume="nowhere.pth")


@pytest.mark.parametrize("name", ["iter_2.pth", "copy.pth"])
def test_resume_before_later_checkpoints(root: Path, work_dir: Path, trained: Path, name: str) -> None:
    """They would be the latest ones of the resumed run, and its own would be deleted as older."""
    shutil.copytree(trained, work_dir)
    (work_dir / "iter_2.pth").rename(work_dir / name)
    before = sorted(path.name for path in work_dir.iterdir())
    with pytest.raises(
        LaunchError, match=rf"{name}: .* has later checkpoints \(iter_4.pth\).*move them away"
    ):
        train(root, work_dir, resume=str(work_dir / name))
    assert sorted(path.name for path in work_dir.iterdir()) == before


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_results_without_checkpoints_are_not_overwritten(
    root: Path, work_dir: Path, trained: Path, resume: tuple[str, ...]
) -> None:
    shutil.copytree(trained, work_dir)
    for path in work_dir.glob("iter_*.pth"):
        path.unlink()
    before = (work_dir / "vit_t_s4p_upernet.pth").read_bytes()
    message = r"holds the results of a run \(vit_t_s4p.pth\), but none of its checkpoints"
    with pytest.raises(LaunchError, match=message):
        train(root, work_dir, *resume)
    assert (work_dir / "vit_t_s4p_upernet.pth").read_bytes() == before


def test_a_run_killed_between_a_validation_and_its_first_checkpoint_starts_again(
    root: Path, work_dir: Path, trained: Path
) -> None:
    work_dir.mkdir()
    for name in ("final_metrics.json", "vit_t_s4p_upernet_best.pth", "config.yaml"):
        shutil.copy(trained / name, work_dir)
    assert train(root, work_dir, "--resume") == 0
    assert (work_dir / "iter_4.pth").exists()


def test_resume_of_another_folder_where_checkpoints_are(root: Path, work_dir: Path, trained: Path) -> None:
    work_dir.mkdir()
    shutil.copy(trained / "iter_2.pth", work_dir)
    with pytest.raises(LaunchError, match=r"has checkpoints of its own \(iter_2.pth\); move them away"):
        train(root, work_dir, resume=str(trained / "iter_4.pth"))


def test_resume_of_a_copy_of_the_latest_checkpoint(root: Path, work_dir: Path, trained: Path) -> None:
    shutil.copytree(trained, work_dir)
    shutil.copy(work_dir / "iter_4.pth", work_dir / "keep.pth")
    assert train(root, work_dir, resume=str(work_dir / "keep.pth")) == 0


def test_resume_from_weights(root: Path, work_dir: Path, trained: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"vit_t_s4p_upernet.pth: it has no .*optimizer.*iter_<.*--init"
    ):
        train(root, work_dir, resume=str(trained / "vit_t_s4p_upernet.pth"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.decoder_channels": 16}, r"another model: \d+ tensors differ.*\(.*8.*there, .*16.* here\)"),
        (
            {"data.labels": json.dumps({"name": "t", "classes": [*CLASSES, "d"]})},
            r"another model.*classifier",
        ),
        ({"fixmatch.pseudo_labels": "ema"}, r"another model.*teacher.*absent"),
        ({"optim.lr": 1e-5}, "another learning-rate schedule.*start a new run from its weights"),
        ({"schedule.total_iters": 8}, "was to end at iteration 4, this one at 8"),
        ({"optim.layer_decay": 0.9}, "another learning-rate schedule.*layer decay"),
        (
            {"optim.weight_decay": 0.3},
            r"optim.weight_decay was 0\.\d+, here it is 0\.?\d*\..*start a new run",
        ),
        ({"optim.betas": [0.5, 0.9]}, r"optim.betas was .*0\.999.*, here it is .*0\.5"),
        ({"data.unlabeled.batch_size": 0}, "2 data sources, this run has 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_resume_of_another_run(
    root: Path, work_dir: Path, trained: Path, changes: dict, message: str
) -> None:
    with pytest.raises((CheckpointError, DataError), match=message):
        train(root, work_dir, resume=str(trained / "iter_4.pth"), **changes)


def test_commands_still_take_an_option_that_has_no_effect_any_more(caplog: pytest.LogCaptureFixture):
    parser = command_parser("A command.", Path("c.yaml"))
    assert parser.parse_args(["--allow-pickle"]).config == "c.yaml"
    assert "a pickle can run any program with your rights" in caplog.text
    assert "--allow-pickle" not in parser.format_help()


def test_an_unknown_backbone_on_the_command_line_lists_all_and_the_nearest(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        command_parser("A command.", Path("c.yaml")).parse_args(["--backbone", "vitb"])
    assert re.search(
        r"unknown backbone 'vitb'; known backbones: vit_t, .*swin_t.*; did you mean 'vit_b'\?",
        capsys.readouterr().err,
    )
