"""The detection head keeps the contract of heads."""

import time
from collections.abc import Sequence

import pytest
import torch
from mmdet.structures import DetDataSample, SampleList
from mmdet.structures.bbox import get_box_tensor
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from mmrotate.structures.bbox import RotatedBoxes
from torch import Tensor

from s5.detection.network import Settings, build_head
from s5.detection.network.oriented_rcnn import OrientedRCNN
from tests.helpers.head_contract import SIZE, HeadContract

SMALL = Settings(channels=16, fc_channels=16, proposals=20, max_per_img=5, score_thr=0.0)


@pytest.fixture(autouse=True)
def scope() -> None:
    DefaultScope.get_instance(f"test_{time.time_ns()}", scope_name="mmengine")


class TestOrientedRCNN(HeadContract):
    def build(self, in_channels: Sequence[int]) -> OrientedRCNN:
        return build_head(in_channels, 3, SMALL)

    def samples(self, count: int) -> SampleList:
        """Two objects in each image."""
        samples = []
        for _ in range(count):
            shape = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), (SIZE, SIZE))
            sample = DetDataSample(metainfo={**shape, "scale_factor": (1.0, 1.0)})
            boxes = RotatedBoxes(torch.tensor([[40.0, 40, 30, 12, 0.3], [90, 80, 24, 20, -0.5]]))
            sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 2]))
            samples.append(sample)
        return samples

    def loss(self, head: OrientedRCNN, maps: tuple[Tensor, ...]) -> Tensor:
        losses = head.loss(head.neck(maps), self.samples(len(maps[0])))
        assert set(losses) == {"rpn_cls", "rpn_box", "cls", "box"}
        return torch.stack([*losses.values()]).sum()

    def predict(self, head: OrientedRCNN, maps: tuple[Tensor, ...]) -> list[Tensor]:
        found = head.predict(head.neck(maps), self.samples(len(maps[0])))
        assert all(((image.labels >= 0) & (image.labels < 3)).all() for image in found)
        return [torch.cat([get_box_tensor(image.bboxes), image.scores[:, None]], 1) for image in found]
