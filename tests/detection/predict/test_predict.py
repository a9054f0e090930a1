"""`Object_Detection/tools/predict.py`: output files, and merging of windows."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from s5.compat import mmcv_ext
from s5.data.image_io import read_image, write_image
from s5.data.oriented.geometry import to_boxes
from s5.data.oriented.sources import fit_image, pad_image
from s5.data.prepare.__main__ import main as prepare
from s5.detection import predict as det_predict
from s5.detection.network import DetectionModel, build_detector
from s5.errors import ConfigError
from s5.prediction.sources import find_sources
from tests.detection.predict.det_models import (
    SETTINGS,
    TASKS,
    evaluate,
    files,
    picture,
    predict,
    rows,
    write_detector,
    write_pictures,
)
from tests.helpers.det_runs import SIZE, write_config
from tests.helpers.processes import start_ranks
from tests.helpers.s4p_runs import REPO

NAMES = ["a", "deep/b.c", "deep/d"]


@pytest.fixture(scope="module")
def predicted(checkpoint: Path, model: DetectionModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predicted")
    assert predict(checkpoint, write_pictures(folder / "images"), folder / "out") == 0
    return folder


def test_every_task_gets_every_format(predicted: Path) -> None:
    endings = {"drawings": "jpg", "dota": "txt", "geojson": "geojson"}
    expected = [f"{task}/{k}/{name}.{end}" for task in TASKS for k, end in endings.items() for name in NAMES]
    expected += [f"{task}/prediction.yaml" for task in TASKS]
    assert files(predicted / "out") == sorted(expected)
    settings = yaml.safe_load((predicted / "out/harbour/prediction.yaml").read_text())
    assert (settings["size"], settings["window"], settings["overlap"]) == (64, 64, 12)
    assert (settings["score_thr"], settings["classes"]) == (0, ["ship", "crane"])


def test_with_a_window_small_images_are_padded(predicted: Path, checkpoint: Path, tmp_path: Path) -> None:
    """So that objects are as large as in larger images; they are as of an image that is padded already."""
    image = read_image(predicted / "images/a.png")[:40, :48]
    write_image(tmp_path / "in/small.png", image)
    write_image(tmp_path / "in/padded.png", pad_image(image, SIZE))
    found = []
    for name, options in (("small", ["--window", SIZE]), ("padded", []), ("small", [])):
        assert predict(checkpoint, tmp_path / f"in/{name}.png", tmp_path / f"out{len(found)}", *options) == 0
        found.append((tmp_path / f"out{len(found)}/roads/dota/{name}.txt").read_text())
    assert found[0] == found[1] != found[2] and found[0]


@torch.inference_mode()
def test_a_small_image_is_one_pass_of_the_network(predicted: Path, model: DetectionModel) -> None:
    """As in validation: resized to fit the square, boxes in pixels of the file."""
    image = read_image(predicted / "images/a.png")
    square, scale, shape = fit_image(image, SIZE)
    batch = torch.from_numpy(square).permute(2, 0, 1)[None]
    for task, classes in TASKS.items():
        (found,) = model.eval()(batch, {task: 1}, shapes=[shape], scales=[scale])
        boxes, scores, labels = (
            found["pred_instances"][key].numpy() for key in ("bboxes", "scores", "labels")
        )
        path = predicted / f"out/{task}/dota/a.txt"
        written = rows(path)
        assert len(written) == len(scores) > 3
        assert written[:, 8] == pytest.approx(scores, abs=1e-4)
        again = to_boxes(written[:, :8].reshape(-1, 4, 2))
        assert again[:, :2] == pytest.approx(boxes[:, :2], abs=0.02)
        sides = boxes[:, 2:4]  # corners are written to a tenth of a pixel
        assert (abs(again[:, 2:4].prod(1) - sides.prod(1)) < 0.1 * sides.sum(1)).all()
        names = [line.split()[8] for line in path.read_text().splitlines()]
        assert names == [classes[label] for label in labels]


@pytest.mark.parametrize("backbone", ["vit_t", "vit_t_moe"])
@torch.inference_mode()
def test_all_tasks_at_once_are_the_tasks_one_by_one(backbone: str) -> None:
    torch.manual_seed(0)
    counts = {"one": 1, "two": 2}
    experts = 48 if backbone == "vit_t_moe" else 0
    detector = build_detector("vit_t", counts, SIZE, expert_channels=experts, settings=SETTINGS)
    model = DetectionModel(detector).eval()
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    shapes, scales = [(64, 64), (40, 64)], [1.0, 0.5]
    together = model.predict_all(images, shapes, scales)
    for task in counts:
        alone = model(images, {task: 2}, shapes=shapes, scales=scales)
        for ours, theirs in zip(together[task], alone, strict=True):
            for key, values in theirs["pred_instances"].items():
                assert torch.allclose(ours[key].double(), values.double(), atol=1e-3)
            assert len(ours["scores"]) > 0


@pytest.mark.parametrize("experts", [0, 48])
@torch.inference_mode()
def test_only_the_heads_and_experts_of_the_chosen_tasks_run(experts: int) -> None:
    torch.manual_seed(0)
    detector = build_detector(
        "vit_t", {"one": 1, "two": 2}, SIZE, expert_channels=experts, settings=SETTINGS
    ).eval()
    model = DetectionModel(detector)
    batch = torch.randint(0, 256, (1, 3, SIZE, SIZE), dtype=torch.uint8), [(SIZE, SIZE)], [1.0]
    together = model.predict_all(*batch)
    passes: list[int] = []
    detector.backbone.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    detector.heads["one"].neck.register_forward_pre_hook(lambda *_: pytest.fail("the head of `one` ran"))
    alone = model.predict_all(*batch, ["two"])
    assert alone.keys() == {"two"}
    assert passes == [1], "the image is not repeated for the expert of `one`"
    for key, values in together["two"][0].items():
        assert torch.allclose(alone["two"][0][key].double(), values.double(), atol=1e-3)


def test_some_tasks_and_formats_and_a_threshold(predicted: Path, checkpoint: Path, tmp_path: Path) -> None:
    whole = rows(predicted / "out/roads/dota/a.txt")
    threshold = float(np.median(whole[:, 8]))
    given = [predicted / "images/a.png", f"{predicted}/images/deep/*.png"]
    options = ("--tasks", "roads", "--formats", "dota,geojson", "--score-thr", threshold)
    assert predict(checkpoint, given, tmp_path, *options) == 0
    assert files(tmp_path) == [
        *(f"roads/dota/{name}.txt" for name in ("a", "d")),
        *(f"roads/geojson/{name}.geojson" for name in ("a", "d")),
        "roads/prediction.yaml",
    ]
    found = rows(tmp_path / "roads/dota/a.txt")
    assert 0 < len(found) < len(whole)
    assert np.allclose(found, whole[whole[:, 8] > threshold], atol=0.02)


def test_windows_are_those_of_the_prepared_images_and_merged_alike(
    predicted: Path, model: DetectionModel, checkpoint: Path, tmp_path: Path
) -> None:
    """`predict.py` on whole images, and `test.py` on their windows as `prepare dota` cuts them."""
    (tmp_path / "src/test").mkdir(parents=True)
    for name in ("b.c.jpg", "d.png"):
        shutil.copy(predicted / "images/deep" / name, tmp_path / "src/test" / name)
    options = ["--size", "64", "--gap", "12", "--workers", "1", "--classes", "car"]
    (tmp_path / "src/train").mkdir()
    assert prepare(["dota", "--src", str(tmp_path / "src"), "--out", str(tmp_path / "root"), *options]) == 0
    assert len(list((tmp_path / "root/dota/test/images").iterdir())) == 6 + 2
    config = write_config(tmp_path)
    section = json.dumps(
        {"images": "root/dota/test/images", "names": "root/dota/splits/test.txt", "windows": True}
    )
    one = {"images": "-", "annotations": "-"}
    tasks = {"roads": {"classes": ["car"], "train": one, "val": one}}
    changes = [f"tasks={json.dumps(tasks)}", f"tasks.roads.test={section}", "precision=fp32"]
    options = ("--split", "test", "--out", tmp_path / "texts", "--cfg-options", *changes)
    assert evaluate(config, checkpoint, tmp_path / "work", *options) == 0
    assert files(tmp_path / "texts") == ["roads/b.c.txt", "roads/d.txt"]
    assert predict(checkpoint, predicted / "images/deep", tmp_path / "alone", "--tasks", "roads") == 0
    for name in ("b.c", "d"):
        ours, theirs = tmp_path / f"alone/roads/dota/{name}.txt", tmp_path / f"texts/roads/{name}.txt"
        assert len(rows(ours)) > 3
        assert ours.read_text() == theirs.read_text()


def test_windows_are_merged_at_the_threshold_of_the_model(predicted: Path, tmp_path: Path) -> None:
    """At 1, nothing that a window keeps is dropped; 0.1 drops what neighbouring windows see twice."""
    counts = {}
    for nms in (0.1, 1.0):
        settings = replace(SETTINGS, nms=nms)
        write_detector(tmp_path / f"{nms}.pth", {"roads": ("car",)}, settings=asdict(settings))
        given = (tmp_path / f"{nms}.pth", predicted / "images/deep", tmp_path / f"{nms}", "--formats", "dota")
        assert predict(*given) == 0
        counts[nms] = [len(rows(tmp_path / f"{nms}/roads/dota/{name}.txt")) for name in ("b.c", "d")]
        said = yaml.safe_load((tmp_path / f"{nms}/roads/prediction.yaml").read_text())
        assert said["nms"] == nms
    windows = (6, 2)
    assert counts[1.0] == [count * SETTINGS.max_per_img for count in windows]
    assert counts[0.1] < counts[1.0]


def test_the_log_says_which_operators_are_in_use(
    checkpoint: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "s5.predict"):
        predict(checkpoint, images / "a.png", tmp_path / "out", "--formats", "dota")
    assert f"mmcv operators: {mmcv_ext.in_use()}" in caplog.messages


def test_geojson_in_pixels(predicted: Path) -> None:
    collection = json.loads((predicted / "out/harbour/geojson/deep/b.c.geojson").read_text())
    text = rows(predicted / "out/harbour/dota/deep/b.c.txt")
    assert (collection["type"], collection["reference"][:6]) == ("FeatureCollection", "pixels")
    assert len(collection["features"]) == len(text)
    for feature, line in zip(collection["features"], text, strict=True):
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1] and len(ring) == 5
        assert np.array(ring[:4]).ravel() == pytest.approx(line[:8], abs=0.011)
        assert feature["properties"]["score"] == pytest.approx(line[8], abs=1e-6)
        assert feature["properties"]["class"] in TASKS["harbour"]


def test_drawings(predicted: Path) -> None:
    for name, source in (("a", "a.png"), ("deep/b.c", "deep/b.c.jpg")):
        drawn = read_image(predicted / f"out/roads/drawings/{name}.jpg")
        photo = read_image(predicted / "images" / source)
        assert drawn.shape == photo.shape
        assert np.abs(drawn.astype(int) - photo).mean() > 3


# Again


def test_resume_leaves_finished_images_alone(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(checkpoint, images, out)
    written = {name: (out / name).stat().st_mtime_ns for name in files(out)}
    (out / "roads/geojson/a.geojson").unlink()
    assert predict(checkpoint, images, out, "--resume") == 0
    changed = [name for name in files(out) if (out / name).stat().st_mtime_ns != written[name]]
    assert {Path(name).stem for name in changed} == {"a", "prediction"}
    with pytest.raises(ConfigError, match=r"prediction.yaml.*overlap 12, now it is 20; .*omit --resume"):
        predict(checkpoint, images, out, "--resume", "--overlap", "20")
    with pytest.raises(ConfigError, match=r"score_thr 0.0, now it is 0.5, and 6 are of other images"):
        predict(checkpoint, images / "a.png", out, "--score-thr", "0.5")


def test_a_killed_prediction_resumes_where_it_stopped(
    predicted: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, out = det_predict.write_results, tmp_path / "out"

    def stops(results: object, source: object, *args: object) -> None:
        if str(source.name) == "deep/d":  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        write(results, source, *args)

    monkeypatch.setattr(det_predict, "write_results", stops)
    with pytest.raises(KeyboardInterrupt):
        predict(checkpoint, predicted / "images", out)
    left = files(out)
    assert "roads/dota/a.txt" in left and not [name for name in left if "tmp" in name or "/d." in name]
    before = (out / "roads/dota/a.txt").stat().st_mtime_ns
    monkeypatch.setattr(det_predict, "write_results", write)
    assert predict(checkpoint, predicted / "images", out, "--resume") == 0
    assert (out / "roads/dota/a.txt").stat().st_mtime_ns == before
    for name in files(predicted / "out"):
        assert (out / name).read_bytes() == (predicted / "out" / name).read_bytes()


def test_inputs_may_be_several_and_repeat(images: Path, tmp_path: Path) -> None:
    given = [str(images), str(images / "a.png"), f"{images}/deep/*.png"]
    assert [str(s.name) for s in find_sources(given, tmp_path)] == [*NAMES, "d"]
    same = [f"{images}/a.png", f"{images}/../images/a.png"]
    assert [str(s.name) for s in find_sources(same, tmp_path)] == ["a"]


@pytest.mark.slow
def test_processes_share_the_images(predicted: Path, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(predicted / "images", tmp_path / "images")
    (tmp_path / "images/text.jpg").write_text("no image")
    shared = [checkpoint, tmp_path / "images", "--out", tmp_path / "out", "--device", "cpu"]
    shared += ["--precision", "fp32", "--score-thr", "0"]
    ranks = start_ranks(
        REPO / "Object_Detection/tools/predict.py", [str(part) for part in shared], tmp_path, 2
    )
    assert [process.wait(120) for process in ranks] == [1, 0], [process.text() for process in ranks]
    first, other = (process.text() for process in ranks)
    assert first.count("text.jpg: is not an image") == 1 and "3 images, 2 tasks" in first
    assert "text.jpg" not in other and "Traceback" not in first + other
    for name in files(predicted / "out"):
        assert (tmp_path / "out" / name).read_bytes() == (predicted / "out" / name).read_bytes()


def test_many_images_of_one_window(checkpoint: Path, model: DetectionModel, tmp_path: Path) -> None:
    """More images than the queues for reading, cutting and writing hold."""
    for i in range(20):
        write_image(tmp_path / f"in/{i:02d}.png", picture(32, 32, i))
    assert (
        predict(checkpoint, tmp_path / "in", tmp_path / "out", "--tasks", "roads", "--formats", "dota") == 0
    )
    texts = [(tmp_path / f"out/roads/dota/{i:02d}.txt").read_text() for i in range(20)]
    assert len(set(texts)) == 20


def test_a_dense_model_of_one_task(images: Path, tmp_path: Path) -> None:
    write_detector(tmp_path / "dense.pth", {"lake": ("raft",)}, "vit_t")
    assert predict(tmp_path / "dense", images, tmp_path / "out", "--formats", "dota") == 0
    assert files(tmp_path / "out") == [*(f"lake/dota/{name}.txt" for name in NAMES), "lake/prediction.yaml"]
