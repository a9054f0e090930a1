"""Contract tests of what is trained in a backbone: everything, nothing but its own parts, or adapters."""

import copy

import pytest
import torch

from s5.backbones import Architecture, Backbone, Lora, adapted_weight, adapter_names, merge_adapters

SIZE = 64
TASKS = ("roads", "ships", "trees")
TWO = {"trees": 1, "ships": 2}


class FinetuneContract:
    """Part of the contract of every backbone.

    `lora` are settings of which each layer exists in it; None if it has no linear layers.
    """

    architecture: Architecture
    lora: Lora | None = Lora(4, 6.0, ("attn.qkv", "attn.proj", "mlp.fc1"))

    def build(self, **options) -> Backbone:
        raise NotImplementedError

    def with_adapters(self, random: bool = True, **options) -> Backbone:
        """Dense or with experts of the same tasks; `random` adapters change the features."""
        if self.lora is None:
            pytest.skip("has no linear layers")
        own = {} if hasattr(self, "tasks") else {"experts": TASKS}
        backbone = self.build(lora=self.lora, **own, **options)
        torch.manual_seed(2)
        for name, parameter in backbone.named_parameters():
            if random and adapter_names([name]):
                torch.nn.init.normal_(parameter, std=0.1)
        return backbone

    def own(self, backbone: Backbone) -> set[str]:
        return {name for name, _ in backbone.named_parameters() if name.startswith(backbone.own)}

    def test_a_frozen_backbone_trains_its_own_parts_alone_and_stores_nothing(self) -> None:
        backbone = self.build(drop_path=0.5)
        inputs: list[torch.Tensor] = []
        backbone.pyramid.register_forward_pre_hook(lambda _, args: inputs.extend(args[0]))
        backbone.train_parts("frozen")
        images, counts = torch.randn(2, 3, SIZE, SIZE), {"ships": 2} if backbone.experts else None
        first, second = (backbone.train()(images, counts) for _ in range(2))
        assert not any(level.requires_grad for level in inputs), "no graph that would keep activations"
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "drop path is off"
        assert {name for name, p in backbone.named_parameters() if p.requires_grad} == self.own(backbone)

    @torch.no_grad()
    def test_at_first_adapters_change_nothing(self) -> None:
        images = torch.randn(3, 3, SIZE, SIZE)
        adapted = self.with_adapters(random=False).eval()
        plain = self.build().eval()
        for one, other in zip(adapted(images, TWO), plain(images, TWO), strict=True):
            assert torch.equal(one, other)

    def test_only_adapters_of_tasks_in_the_batch_experts_and_own_parts_get_a_gradient(self) -> None:
        backbone = self.with_adapters()
        sum(
            level.square().mean() for level in backbone.train()(torch.randn(3, 3, SIZE, SIZE), TWO)
        ).backward()
        found = {name for name, p in backbone.named_parameters() if p.grad is not None and p.grad.any()}
        adapters = {name for name, _ in backbone.named_parameters() if adapter_names([name])}
        experts = {name for name, _ in backbone.named_parameters() if ".experts." in name}
        absent = {name for name in adapters | experts if ".roads." in name}
        assert len(adapters) == len(TASKS) * len([n for n in adapters if ".roads." in n])
        assert found == (adapters | experts | self.own(backbone)) - absent

    @torch.no_grad()
    def test_every_task_has_its_adapters_in_one_batch(self) -> None:
        backbone = self.with_adapters().eval()
        images = torch.randn(3, 3, SIZE, SIZE)
        together = backbone(images, TWO)
        apart = backbone(images[:1], {"trees": 1}), backbone(images[1:], {"ships": 2})
        for level, *parts in zip(together, *apart, strict=True):
            torch.testing.assert_close(level, torch.cat(parts), atol=1e-4, rtol=1e-4)
        other = backbone(images[:1], {"ships": 1})
        assert not torch.equal(other[3], apart[0][3])

    @torch.no_grad()
    def test_merged_weights_of_a_task_compute_the_same(self) -> None:
        backbone, plain = self.with_adapters().eval(), self.build().eval()
        plain.load_state_dict(merge_adapters(backbone.state_dict(), "ships"))
        images = torch.randn(2, 3, SIZE, SIZE)
        for one, other in zip(backbone(images, {"ships": 2}), plain(images, {"ships": 2}), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)

    def test_adapters_are_recomputed_for_the_tasks_of_their_batch(self) -> None:
        """Also if another batch came between the forward and the backward pass."""

        def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
            backbone = self.with_adapters(activation_checkpointing=checkpointing)
            torch.manual_seed(3)
            losses = []
            for counts in (TWO, {"roads": 1, "ships": 2}):
                maps = backbone.train()(torch.randn(3, 3, SIZE, SIZE), counts)
                losses.append(sum(level.square().mean() for level in maps))
            with torch.no_grad():
                backbone(torch.randn(1, 3, SIZE, SIZE), {"roads": 1})
            losses[0].backward()
            losses[1].backward()
            return {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}

        plain, recomputed = gradients(False), gradients(True)
        assert plain.keys() == recomputed.keys()
        for name, gradient in plain.items():
            torch.testing.assert_close(recomputed[name], gradient, msg=name)

    @torch.no_grad()
    def test_a_copy_has_its_own_adapters(self) -> None:
        """As an EMA teacher."""
        backbone = self.with_adapters().eval()
        images = torch.randn(1, 3, SIZE, SIZE)
        before = backbone(images, {"ships": 1})
        teacher = copy.deepcopy(backbone)
        for name, parameter in backbone.named_parameters():
            if adapter_names([name]):
                parameter.zero_()
        backbone(images, {"roads": 1})
        for one, other in zip(teacher(images, {"ships": 1}), before, strict=True):
            assert torch.equal(one, other)

    def test_adapters_belong_to_the_layer_that_they_adapt(self) -> None:
        backbone = self.with_adapters()
        names = {name for name, _ in backbone.named_parameters()}
        adapted = {adapted_weight(name) for name in names if adapter_names([name])}
        assert adapted <= names
        assert all(0 < backbone.layer_of(name) < backbone.num_layers for name in adapted)
