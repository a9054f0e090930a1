"""Contract tests of backbones: a test class inherits one of these and sets its architecture."""

import pytest
import torch

from s5.backbones import Architecture, Backbone, Counts, create_backbone
from s5.errors import CheckpointError
from tests.backbones.finetune_contract import SIZE, FinetuneContract


class BackboneContract(FinetuneContract):
    """Tests of a dense backbone; a subclass gives its `architecture`, small ones first."""

    architecture: Architecture

    def build(self, **options) -> Backbone:
        torch.manual_seed(0)
        return create_backbone(self.architecture, SIZE, **{"drop_path": 0.0, **options})

    def counts(self, batch: int) -> Counts | None:
        """Counts of a batch for this backbone."""
        return None

    def gradients(self, backbone: Backbone) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        images = torch.randn(2, 3, SIZE, SIZE)
        sum(level.square().mean() for level in backbone.train()(images, self.counts(2))).backward()
        return {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}

    def test_maps_have_the_promised_channels_and_strides_at_any_size(self) -> None:
        backbone, step = self.build().eval(), self.architecture.divisor
        smallest = self.architecture.min_size
        assert backbone.strides == (4, 8, 16, 32) and len(backbone.out_channels) == 4
        for height, width in ((SIZE, SIZE), (smallest, SIZE + step), (SIZE + 3 * step, smallest)):
            maps = backbone(torch.randn(2, 3, height, width), self.counts(2))
            expected = [
                (2, channels, height // stride, width // stride)
                for channels, stride in zip(backbone.out_channels, backbone.strides, strict=True)
            ]
            assert [tuple(level.shape) for level in maps] == expected

    def test_other_sizes_are_an_error_with_the_size_and_the_divisor(self) -> None:
        row = self.architecture
        for height, width in ((SIZE, SIZE + row.divisor // 2), (row.min_size - row.divisor, SIZE)):
            message = f"{height}x{width} pixels.*multiples of {row.divisor} and at least {row.min_size}"
            with pytest.raises(ValueError, match=message):
                self.build()(torch.zeros(1, 3, height, width), self.counts(1))
            with pytest.raises(ValueError, match=message):
                create_backbone(row, (height, width))

    def test_the_padded_side_is_the_next_that_fits(self) -> None:
        row = self.architecture
        for side in (1, row.min_size, row.min_size + 1, SIZE, SIZE + row.divisor - 1):
            padded = row.padded(side)
            row.check_size(padded, padded)
            assert side <= padded and (padded - row.divisor < side or padded == row.min_size)

    def test_layers_cover_every_parameter_and_rise_with_depth(self) -> None:
        backbone = self.build()
        layers = {name: backbone.layer_of(name) for name, _ in backbone.named_parameters()}
        assert layers[backbone.stem] == 0
        assert set(layers.values()) >= set(range(backbone.num_layers))
        assert max(layers.values()) <= backbone.num_layers
        assert list(layers.values()) == sorted(layers.values()), "parameters are in the order of their use"

    def test_no_weight_decay_is_switched_off_for_names_that_do_not_exist(self) -> None:
        backbone = self.build()
        named = {*backbone.undecayed, *backbone.inert, backbone.stem}
        assert named <= dict(backbone.named_parameters()).keys()

    def test_every_trainable_parameter_gets_a_gradient(self) -> None:
        """Otherwise processes would wait for its gradient."""
        backbone = self.build()
        found = self.gradients(backbone)
        assert {name for name, p in backbone.named_parameters() if p.requires_grad} == found.keys()
        assert all(gradient.isfinite().all() for gradient in found.values())

    def test_activation_checkpointing_gives_equal_gradients(self) -> None:
        for drop_path in (0.0, 0.5):
            plain, recomputed = (
                self.gradients(self.build(activation_checkpointing=on, drop_path=drop_path))
                for on in (False, True)
            )
            assert plain.keys() == recomputed.keys()
            for name, gradient in plain.items():
                torch.testing.assert_close(recomputed[name], gradient, msg=name)

    def test_activation_checkpointing_keeps_less_for_the_backward_pass(self) -> None:
        def saved(on: bool) -> int:
            backbone, sizes = self.build(activation_checkpointing=on), []
            hooks = torch.autograd.graph.saved_tensors_hooks(
                lambda t: sizes.append(t.numel()) or t, lambda t: t
            )
            with hooks:
                backbone(torch.randn(2, 3, SIZE, SIZE), self.counts(2))
            return sum(sizes)

        assert saved(True) < 0.7 * saved(False)

    @torch.no_grad()
    def test_evaluation_is_the_same_every_time_and_training_drops_paths(self) -> None:
        backbone = self.build(drop_path=0.5)
        images = torch.randn(8, 3, SIZE, SIZE)

        def coarsest() -> list[torch.Tensor]:
            return [backbone(images, self.counts(8))[-1] for _ in range(2)]

        backbone.eval()
        assert torch.equal(*coarsest())
        backbone.train()
        assert not torch.equal(*coarsest())

    @torch.no_grad()
    def test_weights_go_through_a_state_dict(self) -> None:
        source, images = self.build().eval(), torch.randn(1, 3, SIZE, SIZE)
        target = create_backbone(
            self.architecture, SIZE, experts=source.experts, expert_channels=source.expert_channels
        )
        assert self.architecture.fits(source.state_dict())
        fitted, notes = target.fit_weights(source.state_dict())
        assert not notes
        target.eval().load_state_dict(fitted)
        for one, other in zip(source(images, self.counts(1)), target(images, self.counts(1)), strict=True):
            assert torch.equal(one, other)

    @torch.no_grad()
    def test_weights_fit_a_model_for_images_of_another_size(self) -> None:
        source = self.build()
        target = create_backbone(
            self.architecture, 2 * SIZE, experts=source.experts, expert_channels=source.expert_channels
        )
        fitted, _ = target.fit_weights(source.state_dict())
        target.load_state_dict(fitted)

    def test_bands_are_selected_in_the_stem(self) -> None:
        backbone = self.build()
        weight = backbone.get_parameter(backbone.stem).detach()
        wide = backbone.state_dict() | {backbone.stem: torch.cat([weight, weight.flip(1)], 1)}
        fitted, (note,) = backbone.fit_weights(wide, (6, 5, 4))
        assert torch.equal(fitted[backbone.stem], weight) and "channels 6, 5, 4 of 6" in note
        with pytest.raises(CheckpointError, match="init_bands 7,1,1: .* has 6 channels"):
            backbone.fit_weights(wide, (7, 1, 1))

    def test_it_is_compiled_or_says_that_it_cannot_be(self) -> None:
        backbone = self.build().eval()
        images = torch.randn(2, 3, SIZE, SIZE)
        with torch.no_grad():
            eager = backbone(images, self.counts(2))
            try:
                backbone.compile_blocks("eager")
            except ValueError as error:
                assert self.architecture.name in str(error)
                return
            for one, other in zip(backbone(images, self.counts(2)), eager, strict=True):
                torch.testing.assert_close(one, other)


class ExpertsContract(BackboneContract):
    """Tests of a backbone with experts."""

    tasks = ("roads", "ships", "trees")

    def build(self, **options) -> Backbone:
        return super().build(experts=self.tasks, expert_channels=8, **options)

    def counts(self, batch: int) -> Counts:
        return {"ships": 1, "trees": batch - 1} if batch > 1 else {"roads": batch}

    def test_every_trainable_parameter_gets_a_gradient(self) -> None:
        """Except for the experts of tasks that are not in the batch."""
        backbone = self.build()
        found = self.gradients(backbone)
        without = {name for name, p in backbone.named_parameters() if p.requires_grad} - found.keys()
        assert without and all(".experts.roads." in name for name in without)

    @torch.no_grad()
    def test_a_batch_of_several_tasks_equals_one_pass_per_task(self) -> None:
        """In any order of the counts."""
        backbone = self.build().eval()
        images = torch.randn(4, 3, SIZE, SIZE)
        together = backbone(images, {"trees": 1, "roads": 0, "ships": 3})
        apart = [backbone(images[:1], {"trees": 1}), backbone(images[1:], {"ships": 3})]
        for index, level in enumerate(together):
            separate = torch.cat([maps[index] for maps in apart])
            torch.testing.assert_close(level, separate, atol=1e-5, rtol=1e-5)
        other = backbone(images[:1], {"ships": 1})
        assert not torch.allclose(other[3], apart[0][3], atol=1e-3)

    @pytest.mark.parametrize("counts", [None, {"roads": 1}, {"roads": 2, "lakes": 1}])
    def test_counts_that_do_not_match_name_the_experts_and_the_batch(self, counts: Counts | None) -> None:
        with pytest.raises(ValueError, match="roads, ships, trees.*batch of 3"):
            self.build()(torch.zeros(3, 3, SIZE, SIZE), counts)

    def test_without_channels_it_is_dense(self) -> None:
        dense = create_backbone(self.architecture, SIZE, experts=self.tasks, expert_channels=0)
        assert dense.experts == () and dense.expert_channels == 0
        assert dense.state_dict().keys() == create_backbone(self.architecture, SIZE).state_dict().keys()
