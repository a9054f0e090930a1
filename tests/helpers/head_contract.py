"""What every head of a task promises. A further head is a further class with three methods."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

SIZE = 128  # of the images, in pixels


class HeadContract:
    """Tests that each head inherits."""

    def build(self, in_channels: Sequence[int]) -> nn.Module:
        """A small head for maps of these channels."""
        raise NotImplementedError

    def loss(self, head: nn.Module, maps: tuple[Tensor, ...]) -> Tensor:
        """The training loss of two images."""
        raise NotImplementedError

    def predict(self, head: nn.Module, maps: tuple[Tensor, ...]) -> list[Tensor]:
        """What it predicts for each image."""
        raise NotImplementedError

    def maps(self, channels: Sequence[int], images: int = 2) -> tuple[Tensor, ...]:
        """Feature maps of strides 4, 8, 16 and 32."""
        generator = torch.Generator().manual_seed(0)
        sides = [SIZE // stride for stride in (4, 8, 16, 32)]
        return tuple(
            torch.randn(images, count, side, side, generator=generator)
            for count, side in zip(channels, sides, strict=True)
        )

    @pytest.mark.parametrize("channels", [(32, 32, 32, 32), (8, 16, 24, 40)])
    def test_it_takes_the_maps_of_any_backbone(self, channels: tuple[int, ...]) -> None:
        head = self.build(channels).eval()
        with torch.no_grad():
            assert len(self.predict(head, self.maps(channels))) == 2

    def test_every_trained_parameter_gets_a_gradient(self) -> None:
        head = self.build((16, 16, 16, 16)).train()
        self.loss(head, self.maps((16, 16, 16, 16))).backward()
        trained = {name: p for name, p in head.named_parameters() if p.requires_grad}
        assert trained and not [name for name, p in trained.items() if p.grad is None]

    def test_weights_alone_decide_what_it_predicts(self) -> None:
        head, maps = self.build((16, 16, 16, 16)).eval(), self.maps((16, 16, 16, 16))
        other = self.build((16, 16, 16, 16)).eval()
        with torch.no_grad():
            before = self.predict(other, maps)
            pairs = zip(before, self.predict(head, maps), strict=True)
            assert not all(one.shape == two.shape and torch.equal(one, two) for one, two in pairs)
            other.load_state_dict(head.state_dict())
            for one, two in zip(self.predict(head, maps), self.predict(other, maps), strict=True):
                assert torch.equal(one, two)

    def test_an_image_is_predicted_alike_whatever_else_is_in_the_batch(self) -> None:
        head, maps = self.build((16, 16, 16, 16)).eval(), self.maps((16, 16, 16, 16))
        with torch.no_grad():
            alone = self.predict(head, tuple(level[:1] for level in maps))[0]
            assert torch.allclose(self.predict(head, maps)[0], alone, atol=1e-4)
