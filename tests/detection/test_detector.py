"""The detector: coding of proposals, losses, precision, published weights, several tasks in one pass."""

import math
import time

import pytest
import torch
from mmdet.models.task_modules.assigners import MaxIoUAssigner
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from mmrotate.models.task_modules.coders import MidpointOffsetCoder
from mmrotate.structures.bbox import RotatedBoxes, rbox2qbox

from s5.checkpoints.layouts import convert
from s5.checkpoints.layouts.published import DETECTION_PARTS, DETECTION_TASKS, DOTA_ROWS
from s5.checkpoints.loading import load_weights
from s5.data.datasets.dota import DOTA_V2, DOTA_V2_PUBLISHED
from s5.data.labels import get_classes
from s5.detection.network import DetectionModel, Settings, build_detector
from s5.detection.network import parts as assigner
from s5.detection.network.parts import AnalyticMidpointCoder, IgnoringAssigner
from s5.segmentation.segmentor import build_segmentor
from tests.helpers.trained_models import to_published

SETTINGS = Settings(proposals=30, max_per_img=10, score_thr=0.0)
SIZE = 64
STDS = (1.0, 1.0, 1.0, 1.0, 0.5, 0.5)


@pytest.fixture(autouse=True)
def scope() -> None:
    """As after any training in the same process: mmengine then looks names up in its own registry first."""
    DefaultScope.get_instance(f"test_{time.time_ns()}", scope_name="mmengine")


@pytest.fixture
def model() -> DetectionModel:
    torch.manual_seed(0)
    detector = build_detector("vit_t", {"dior": 20, "dota": 18}, SIZE, expert_channels=48, settings=SETTINGS)
    return DetectionModel(detector)


def boxes(count: int) -> torch.Tensor:
    sides = torch.rand(count, 2) * 10 + 8
    return torch.cat([torch.rand(count, 2) * 40 + 12, sides, torch.rand(count, 1) * 3 - 1.5], 1)


def batch(objects: tuple[int, ...] = (3, 0, 2)) -> dict:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (len(objects), 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return {
        "images": images,
        "shapes": [(SIZE, SIZE)] * len(objects),
        "scales": [1.0] * len(objects),
        "boxes": [boxes(count) for count in objects],
        "labels": [torch.randint(0, 18, (count,)) for count in objects],
        "ignored": [boxes(1), boxes(0), boxes(0)][: len(objects)],
    }


def test_proposals_are_decoded_as_by_opencv() -> None:
    torch.manual_seed(0)
    corners = torch.rand(2000, 2) * 800
    anchors = torch.cat([corners, corners + torch.rand(2000, 2) * 100 + 5], 1)
    deltas = torch.randn(2000, 6) * 0.5
    da, db = deltas[:, 4:].clamp(-1, 1).unbind(1)
    deltas = deltas[(da.abs() < 1) | (db != -da)]  # diagonals that coincide: see below
    anchors = anchors[: len(deltas)]
    ours, theirs = (
        coder(angle_version="le90", target_stds=STDS, use_box_type=False).decode(anchors, deltas)
        for coder in (AnalyticMidpointCoder, MidpointOffsetCoder)
    )
    assert ((ours[:, 2] >= ours[:, 3]) & (ours[:, 4] >= -math.pi / 2) & (ours[:, 4] < math.pi / 2)).all()
    # A square has four angles, so corners are compared: each of ours with the nearest of theirs.
    a, b = (rbox2qbox(part).view(-1, 4, 2) for part in (ours, theirs))
    assert torch.cdist(a, b).amin(2).max() < 0.01


@pytest.mark.parametrize("db", [1.0, -1.0, 7.5, -3.0])
def test_diagonals_that_coincide_give_the_upright_box_around_them(db: float) -> None:
    """Of both directions, at the bounds and beyond; a little before them, the rectangle is a thin one."""
    anchors = torch.tensor([[10.0, 20, 50, 40], [0, 0, 16, 64]])
    coder = AnalyticMidpointCoder(angle_version="le90", target_stds=STDS, use_box_type=False)
    deltas = torch.tensor([[0.25, 0, math.log(2), 0, -db, db]] * 2)
    found = coder.decode(anchors, deltas)
    expected = torch.tensor([[40.0, 30, 80, 20, 0], [12, 32, 64, 32, -math.pi / 2]])
    torch.testing.assert_close(found, expected)
    thin = coder.decode(anchors, torch.tensor([[0.0, 0, 0, 0, -math.copysign(0.99, db), db]] * 2))
    assert (thin[:, 3] < 1).all() and (thin[:, 2] > torch.tensor([40, 64])).all()


def test_mirrored_offsets_give_mirrored_boxes() -> None:
    torch.manual_seed(3)
    corners = torch.rand(500, 2) * 50
    anchors = torch.cat([corners, corners + torch.rand(500, 2) * 30 + 4], 1)
    deltas = torch.randn(500, 6) * torch.tensor([0.3, 0.3, 0.3, 0.3, 2, 2])
    mirrored_anchors = anchors[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1])
    # The upper corner stays on the upper side; the right one becomes the left one, opposite the new one.
    mirrored = deltas * torch.tensor([-1, 1, 1, 1, -1, -1])
    coder = AnalyticMidpointCoder(angle_version="le90", target_stds=STDS, use_box_type=False)
    found, other = (
        rbox2qbox(coder.decode(a, d)).view(-1, 4, 2)
        for a, d in ((anchors, deltas), (mirrored_anchors, mirrored))
    )
    collapsed = (deltas[:, 4].abs() >= 1) & (deltas[:, 5].abs() >= 1) & (deltas[:, 4] * deltas[:, 5] < 0)
    assert collapsed.sum() > 20
    assert torch.cdist(found * torch.tensor([-1, 1]), other).amin(2).max() < 1e-2


def test_no_proposal_is_decoded_to_nan() -> None:
    anchors = torch.tensor([[0.0, 0, 0, 0], [5, 5, 5, 9], [0, 0, 1e4, 1e4]])
    deltas = torch.tensor([[0.0] * 6, [50.0] * 6, [-50.0] * 6])
    coder = AnalyticMidpointCoder(angle_version="le90", target_stds=STDS, use_box_type=False)
    assert coder.decode(anchors, deltas).isfinite().all()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("objects", [(3, 0, 2), (0, 0, 0)])
def test_losses_are_finite_and_every_weight_has_a_gradient(
    model: DetectionModel, objects: tuple[int, ...], dtype: torch.dtype | None
) -> None:
    model.dtype = dtype
    losses = model(counts={"dior": 1, "dota": 2}, mode="loss", **batch(objects))
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    parts = [value for name, value in losses.items() if name != "loss"]
    assert len(parts) == 8 and losses["loss"].item() == pytest.approx(sum(parts).item(), rel=1e-5)
    losses["loss"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@torch.no_grad()
def test_tasks_together_are_found_as_one_by_one(model: DetectionModel) -> None:
    model.eval()
    images = batch()
    together = model(counts={"dior": 1, "dota": 2}, mode="predict", **images)
    first = model(images["images"][:1], {"dior": 1}, shapes=images["shapes"][:1], scales=[1.0])
    rest = model(images["images"][1:], {"dota": 2}, shapes=images["shapes"][1:], scales=[1.0, 1.0])
    for one, other in zip(together, [*first, *rest], strict=True):
        one, other = one["pred_instances"], other["pred_instances"]
        assert len(one["scores"]) == 10 and torch.equal(one["labels"], other["labels"])
        torch.testing.assert_close(one["bboxes"], other["bboxes"], atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_published_weights_convert_both_ways_and_find_the_same_boxes(model: DetectionModel) -> None:
    state = model.detector.state_dict()
    published = to_published(state)
    assert {key.partition(".")[0] for key in published} == {
        "backbone",
        *(f"{part}_{task}" for part in DETECTION_PARTS for task in DETECTION_TASKS),
    }
    angle = "bbox_head.fc_reg.bias"
    assert torch.equal(published[f"roi_head_dior.{angle}"][4], -state[f"heads.dior.roi_head.{angle}"][4])
    rows = published["roi_head_dota.bbox_head.fc_cls.weight"]
    ours = state["heads.dota.roi_head.bbox_head.fc_cls.weight"]
    ship = [names.index("ship") for names in (DOTA_V2_PUBLISHED, DOTA_V2)]
    assert DOTA_ROWS == tuple(DOTA_V2_PUBLISHED.index(name) for name in DOTA_V2)
    assert torch.equal(rows[ship[0]], ours[ship[1]]) and torch.equal(rows[-1], ours[-1])
    assert convert(published).layout == "published S5"
    torch.manual_seed(1)
    other = build_detector("vit_t", {"dior": 20, "dota": 18}, SIZE, expert_channels=48, settings=SETTINGS)
    report = load_weights(other, published)
    assert not report.missing and not report.misshaped and not report.unexpected
    images = batch()
    for one, two in zip(
        model.eval()(counts={"dior": 1, "dota": 2}, mode="predict", **images),
        DetectionModel(other).eval()(counts={"dior": 1, "dota": 2}, mode="predict", **images),
        strict=True,
    ):
        assert torch.equal(one["pred_instances"]["bboxes"], two["pred_instances"]["bboxes"])


@torch.no_grad()
def test_published_rows_in_the_order_of_the_dataset_have_a_list_of_classes(model: DetectionModel) -> None:
    """Weights whose rows are not in the released order: after loading, `dota_v2_as_stored` names them."""
    name = "roi_head_dota.bbox_head.fc_cls.weight"
    published = to_published(model.detector.state_dict())
    theirs = torch.arange(19.0)[:, None].expand_as(published[name]).clone()  # row i is class i of DOTA_V2
    report = load_weights(model.detector, {**published, name: theirs})
    assert not report.missing
    rows = model.detector.heads["dota"].roi_head.bbox_head.fc_cls.weight[:, 0].tolist()
    assert [DOTA_V2[int(row)] for row in rows[:-1]] == list(get_classes("dota_v2_as_stored"))
    assert rows[-1] == 18 and sorted(get_classes("dota_v2_as_stored")) == sorted(DOTA_V2)


def test_starts_from_s4p_at_another_size(model: DetectionModel) -> None:
    s4p = build_segmentor("vit_t", {"s4p": 5}, 96, channels=8)
    report = load_weights(model.detector, s4p.backbone.state_dict())
    assert report.backbone_share == 1.0
    assert {name.partition(".")[0] for name in report.missing} == {"heads"}


def test_one_task_is_plain_oriented_rcnn() -> None:
    detector = build_detector("vit_t", {"mine": 3}, SIZE, settings=SETTINGS)
    assert detector.backbone.experts == ()
    model = DetectionModel(detector)
    losses = model(
        counts={"mine": 3},
        mode="loss",
        **{**batch(), "labels": [torch.zeros(n, dtype=torch.long) for n in (3, 0, 2)]},
    )
    assert losses["loss"].isfinite()


def assigners(model: DetectionModel) -> list:
    """The RPN's and the RoI head's, with boxes on and beside what the assigner is asked about."""
    head = model.detector.heads["dota"]
    rotated = torch.tensor(
        [[30.0, 30, 20, 10, 0.5], [31, 30, 20, 10, 0.5], [30, 30, 4, 4, 0], [50, 10, 20, 10, 0]]
    )
    upright = HorizontalBoxes(RotatedBoxes(rotated).convert_to("hbox").tensor)
    return [(head.rpn_head.assigner, upright), (head.roi_head.bbox_assigner, RotatedBoxes(rotated))]


def test_what_lies_on_ignored_objects_is_not_background(model: DetectionModel) -> None:
    """At the object's own position, beside it and within it; with and without other objects in the image."""
    ignored = InstanceData(bboxes=RotatedBoxes(torch.tensor([[30.0, 30, 20, 10, 0.5]])))
    for one, priors in assigners(model):
        given = InstanceData(priors=priors)
        for truth, expected in (
            (torch.zeros(0, 5), [-1, -1, -1, 0]),
            (torch.tensor([[50.0, 10, 20, 10, 0]]), [-1, -1, -1, 1]),
            (torch.tensor([[30.0, 30, 20, 10, 0.5]]), [1, 1, -1, 0]),
        ):
            labels = torch.zeros(len(truth), dtype=torch.long)
            objects = InstanceData(bboxes=RotatedBoxes(truth), labels=labels)
            assert one.assign(given, objects, ignored).gt_inds.tolist() == expected
            unassigned = one.assign(given, objects, ignored[:0]).gt_inds
            assert unassigned.tolist() == [max(0, value) for value in expected]


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_assigns_as_the_original(low: bool, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where objects share the box that overlaps them most, and by a few objects at a time."""
    torch.manual_seed(count)
    settings = {"pos_iou_thr": 0.7, "neg_iou_thr": 0.3, "min_pos_iou": 0.3, "match_low_quality": low}
    theirs = MaxIoUAssigner(iou_calculator={"type": "mmrotate.RBbox2HBboxOverlaps2D"}, **settings)
    ours = IgnoringAssigner(iou_calculator={"type": "mmrotate.EnclosingOverlaps"}, **settings)
    rotated = boxes(count)
    rotated[count // 2 :] = rotated[: count - count // 2]  # the same again, with other labels
    objects = InstanceData(bboxes=RotatedBoxes(rotated), labels=torch.randint(0, 9, (count,)))
    corners = torch.rand(3000, 2) * 50
    given = InstanceData(
        priors=HorizontalBoxes(torch.cat([corners, corners + torch.rand(3000, 2) * 25 + 3], 1))
    )
    monkeypatch.setattr(assigner, "AT_ONCE", 7 * 3000)
    expected, found = (one.assign(given, objects) for one in (theirs, ours))
    assert torch.equal(found.gt_inds, expected.gt_inds) and torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.max_overlaps, expected.max_overlaps)
    assert not count or {-1, 0} < set(found.gt_inds.tolist())


@pytest.mark.parametrize("objects", [0, 2])
def test_an_image_that_is_all_ignored_teaches_nothing(model: DetectionModel, objects: int) -> None:
    """Except for its objects, because it has no background."""
    given = {**batch((objects,)), "labels": [torch.zeros(objects, dtype=torch.long)]}
    given["ignored"] = [torch.tensor([[SIZE / 2, SIZE / 2, 8 * SIZE, 8 * SIZE, 0]])]
    losses = model(counts={"dota": 1}, mode="loss", **given)
    assert losses["loss"].isfinite()
    if not objects:
        assert all(value == 0 for value in losses.values())
        losses["loss"].backward()
        head = model.detector.heads["dota"]
        assert all(weight.grad is not None for weight in head.parameters()), "or processes would wait for it"
    else:
        assert losses["loss_dota_cls"] > 0


def test_images_without_room_for_an_anchor_train(model: DetectionModel) -> None:
    """Of 3 rows, which the smallest anchor does not fit into."""
    given = {**batch(), "shapes": [(3, SIZE), (SIZE, 3), (SIZE, SIZE)]}
    losses = model(counts={"dior": 1, "dota": 2}, mode="loss", **given)
    assert losses["loss"].isfinite() and losses["loss_dior_rpn_cls"] > 0


def test_final_boxes_may_lie_outside_the_image(model: DetectionModel) -> None:
    coder = model.detector.heads["dota"].roi_head.bbox_head.bbox_coder
    found = coder.decode(torch.tensor([[-20.0, 90, 30, 10, 0]]), torch.zeros(1, 5), max_shape=(SIZE, SIZE))
    torch.testing.assert_close(
        found.tensor if isinstance(found, RotatedBoxes) else found, torch.tensor([[-20.0, 90, 30, 10, 0]])
    )


def test_fpn_norm_makes_the_maps_as_large_whatever_the_backbone_gives() -> None:
    """GroupNorm in any number of channels; without it the size of the maps follows the backbone's."""
    torch.manual_seed(0)
    for channels, norm in ((64, True), (48, True), (64, False)):
        settings = Settings(channels=channels, fpn_norm=norm)
        neck = build_detector("vit_t", {"mine": 1}, SIZE, settings=settings).heads["mine"].neck.eval()
        maps = [torch.randn(1, 192, side, side) for side in (16, 8, 4, 2)]
        small, large = neck(maps), neck([10 * level for level in maps])
        factors = [(b.std() / a.std()).item() for a, b in zip(small, large, strict=True)]
        expected = 1.0 if norm else 10.0
        assert factors == pytest.approx([expected] * 5, rel=0.05)


def test_rois_are_enlarged_before_their_level_is_chosen() -> None:
    for enlarge, factors in (((1.0, 1.0), (1, 1)), ((1.4, 1.2), (1.2, 1.4))):
        head = build_detector("vit_t", {"mine": 1}, SIZE, settings=Settings(enlarge=enlarge)).heads["mine"]
        extractor = head.roi_head.bbox_roi_extractor
        levels = tuple(torch.randn(1, 256, 64 // s, 64 // s) for s in (1, 2, 4, 8))
        roi = torch.tensor([[0.0, 100, 90, 60, 30, 0.3]])
        larger = roi.clone()
        larger[:, 3:5] *= torch.tensor(factors)
        plain = super(type(extractor), extractor).forward(levels, larger)
        torch.testing.assert_close(extractor(levels, roi), plain)
