"""The metric of detection on images and on windows, in one process and in several."""

import logging
import math
import multiprocessing

import numpy as np
import pytest
import torch
import torch.distributed as dist

from s5.data.loaders import collate_validation
from s5.data.oriented.annotations import Objects, make_objects
from s5.data.oriented.detections import Detections, concatenate, make_detections
from s5.data.oriented.geometry import share_inside
from s5.data.oriented.merge import merge_windows, window_name
from s5.detection.evaluation import DetectionCollector
from s5.detection.metric import THRESHOLDS, DetectionMetric, average_precision, match
from tests.helpers.oriented_data import CLASSES, detect, rectangles

K = len(CLASSES)


def sample(found: Detections) -> dict:
    tensors = [torch.from_numpy(part) for part in found]
    return {"pred_instances": dict(zip(("bboxes", "scores", "labels"), tensors, strict=True))}


def dataset(count=12, task="harbour") -> list[tuple[dict, dict]]:
    """Items of validation with their predictions."""
    items = []
    for i in range(count):
        objects = rectangles(10 if i % 4 else 0, 40, 64, seed=i)
        items.append(({"name": f"a{i:02d}", "task": task, "objects": objects}, sample(detect(objects, i))))
    return items


def process(metric, items, size=3):
    for start in range(0, len(items), size):
        batch, samples = zip(*items[start : start + size], strict=True)
        metric.process(collate_validation(list(batch)), list(samples))


def evaluated(items, **options):
    metric = DetectionMetric(CLASSES, "harbour", **options)
    process(metric, items)
    return metric.evaluate(len(items))


def direct(items):
    parts = [
        match(make_detections(*prediction["pred_instances"].values()), item["objects"], K)
        for item, prediction in items
    ]
    return average_precision(parts, K)


def test_scores_are_those_of_the_images_together():
    scores = evaluated(dataset())
    precision = direct(dataset())
    eleven, area = 100 * precision.eleven_points, 100 * precision.area
    assert scores["mAP50"] == pytest.approx(eleven[:, 0].mean())
    assert scores["mAP75"] == pytest.approx(eleven[:, THRESHOLDS.index(0.75)].mean())
    assert scores["mAP50:95"] == pytest.approx(eleven.mean())
    assert scores["mAP50_area"] == pytest.approx(area[:, 0].mean())
    assert scores["mAP50:95_area"] == pytest.approx(area.mean())
    assert scores["AP50.plane"] == pytest.approx(eleven[1, 0])
    assert 20 < scores["mAP50:95"] < scores["mAP50"] < 95


def test_batches_and_order_do_not_matter():
    items = dataset()
    for _, prediction in items:
        prediction["pred_instances"]["scores"] = prediction["pred_instances"]["scores"].round(decimals=1)
    expected = evaluated(items)
    metric = DetectionMetric(CLASSES, "harbour")
    process(metric, items[::-1], size=1)
    assert metric.evaluate(12) == expected


def test_only_the_task_counts():
    items = dataset(6) + dataset(8, "airport")
    for task, count in (("harbour", 6), ("airport", 8)):
        metric = DetectionMetric(CLASSES, task, prefix=task)
        process(metric, items)
        scores = metric.evaluate(14)
        expected = DetectionMetric(CLASSES, task)
        process(expected, dataset(count, task))
        assert scores == {f"{task}/{name}": value for name, value in expected.evaluate(count).items()}


def test_every_evaluation_starts_from_zero_and_an_image_counts_once():
    metric = DetectionMetric(CLASSES, "harbour")
    process(metric, dataset(12))
    metric.evaluate(12)
    process(metric, dataset(6) + dataset(2))
    assert metric.evaluate(8) == evaluated(dataset(6))


def test_class_without_objects_is_not_averaged_in():
    objects = make_objects([[5, 5, 15, 5, 15, 10, 5, 10]], [1], [False])
    found = make_detections([[10, 7.5, 10, 5, 0], [30, 7, 10, 5, 0]], [0.9, 0.8], [1, 2])
    scores = evaluated([({"name": "a", "task": "harbour", "objects": objects}, sample(found))])
    assert scores["mAP50"] == pytest.approx(100) and scores["AP50.plane"] == pytest.approx(100)
    assert math.isnan(scores["AP50.ship"])


def test_nothing_processed_gives_no_number():
    scores = evaluated([])
    assert math.isnan(scores["mAP50"]) and math.isnan(scores["AP50.ship"])


def test_boxes_in_mmrotates_type():
    structures = pytest.importorskip("mmrotate.structures.bbox")
    items = dataset(4)
    for _, prediction in items:
        boxes = prediction["pred_instances"]["bboxes"]
        prediction["pred_instances"]["bboxes"] = structures.RotatedBoxes(boxes)
    assert evaluated(items) == evaluated(dataset(4))


def test_logs_a_row_per_class(caplog):
    with caplog.at_level(logging.INFO, logger="s5"):
        scores = evaluated(dataset())
    lines = [line.split() for line in caplog.text.splitlines() if line.strip().startswith(CLASSES)]
    rows = {line[0]: line for line in lines}
    assert float(rows["plane"][4]) == pytest.approx(scores["AP50.plane"], abs=0.006)
    assert int(rows["plane"][1]) == direct(dataset()).objects[1]
    assert f"mAP50 {scores['mAP50']:.2f}" in caplog.text


# Windows


def city(seed=0):
    """Objects of a whole image that do not overlap, and one that no window holds."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[6:100:11, 6:100:11]
    corners = np.array([[-4, -2], [4, -2], [4, 2], [-4, 2]])
    polygons = np.stack([x.ravel(), y.ravel()], 1)[:, None] + corners
    large = np.array([[[0, 0], [100, 0], [100, 1], [0, 1]]])
    labels = [*rng.integers(K, size=x.size), 0]
    return make_objects(np.concatenate([polygons, large]), labels, [i % 9 == 8 for i in range(len(labels))])


def windows(image, objects, seed=0):
    """Overlapping windows; what is found is exact, but for what is missed and invented."""
    rng = np.random.default_rng(seed)
    missed = rng.random(len(objects)) < 0.2
    items = []
    for left in (0, 20, 40):
        share = share_inside(objects.polygons, (left, 0, left + 60, 100))
        inside = share >= 0.7
        polygons = objects.polygons - np.array([left, 0], np.float32)
        own = Objects(polygons, objects.labels, objects.difficult)
        part = own.select(inside)
        seen = own.select(inside & ~missed)
        scores = rng.uniform(0.2, 1, len(seen))
        invented = make_detections([[30, 95.6, 5, 3, 1]], [rng.uniform(0.3, 1)], [0])
        found = concatenate([make_detections(seen.boxes, scores, seen.labels), invented])
        name = window_name(image, 60, left, 0)
        items.append(({"name": name, "task": "harbour", "objects": part}, sample(found)))
    return items


def test_merged_images_are_scored_against_their_own_labels():
    items = []
    wholes = {f"city{i}": city(i) for i in range(3)}
    for i, (name, objects) in enumerate(wholes.items()):
        items += windows(name, objects, i)
    scores = evaluated(items, merge=True, whole=wholes)
    merged = merge_windows(
        (item["name"], make_detections(*p["pred_instances"].values())) for item, p in items
    )
    expected = average_precision([match(merged[name], wholes[name], K) for name in wholes], K)
    assert scores["mAP50"] == pytest.approx(100 * expected.eleven_points[:, 0].mean())
    plain = evaluated(items)
    assert {name: scores[f"windows.{name}"] for name in ("mAP50", "mAP75", "mAP50:95_area")} == {
        name: plain[name] for name in ("mAP50", "mAP75", "mAP50:95_area")
    }
    assert scores["mAP50"] != plain["mAP50"]
    # Without them, the objects that no window holds are missing.
    of_windows = DetectionMetric(CLASSES, "harbour", merge=True)
    process(of_windows, items)
    of_windows.evaluate(9)
    assert of_windows.precision.objects[0] == expected.objects[0] - 3
    assert of_windows.precision.objects[1:].tolist() == expected.objects[1:].tolist()


def test_windows_are_merged_at_the_threshold_that_is_given():
    """Two boxes with the same centre and IoU 2/3."""
    objects = make_objects([[0, 0, 20, 0, 20, 10, 0, 10]], [0], [False])
    found = make_detections([[10, 5, 20, 10, 0], [14, 5, 20, 10, 0]], [0.9, 0.8], [0, 0])
    items = [({"name": window_name("one", 60, 0, 0), "task": "harbour", "objects": objects}, sample(found))]
    for nms, kept in ((0.1, 1), (0.8, 2)):
        metric = DetectionMetric(CLASSES, "harbour", merge=True, nms=nms)
        collector = DetectionCollector(CLASSES, "harbour", merge=True, nms=nms)
        for part in (metric, collector):
            process(part, items)
            part.evaluate(1)
        assert metric.precision.detections[0] == len(collector.detections["one"].scores) == kept


# Several processes


def run_rank(rank, world, folder, work, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    try:
        results.put((rank, work(rank, world)))
    finally:
        dist.destroy_process_group()


def in_processes(work, folder, world=3):
    """Results of each process; processes are forked, so that they start quickly."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=run_rank, args=(r, world, folder, work, results)) for r in range(world)]
    for process_ in ranks:
        process_.start()
    try:
        return dict(results.get(timeout=60) for _ in ranks)
    finally:
        for process_ in ranks:
            process_.join(10)
            process_.kill()


def test_processes_give_the_same_scores(tmp_path):
    items = dataset(11)
    items += [
        ({**item, "name": f"b{i}"}, prediction) for i, (item, prediction) in enumerate(items[:3])
    ]  # ties

    def work(rank, world):
        return evaluated(items[rank::world])

    results = in_processes(work, tmp_path)
    expected = evaluated(items)
    assert results == dict.fromkeys(range(3), expected)


def test_windows_of_one_image_in_several_processes(tmp_path):
    items = windows("one", city()) + windows("two", city(1), 1)
    expected = evaluated(items, merge=True)

    def work(rank, world):
        return evaluated(items[rank::world], merge=True)

    assert in_processes(work, tmp_path) == dict.fromkeys(range(3), expected)
