"""Experts in networks of other libraries, whose blocks pass tokens only."""

import copy
from threading import Thread

import pytest
import torch
from timm.layers import GluMlp, Mlp, SwiGLU
from torch import nn

from s5.backbones import expert_names
from s5.backbones.moe import add_experts, expert_width, recompute, routing, split_experts

TASKS = ("roads", "ships")


class Block(nn.Module):
    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.mlp = mlp

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens + self.mlp(self.norm(tokens))


def network(mlp: type[nn.Module] = Mlp, **options) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Block(mlp(16, 32, **options)) for _ in range(2)))


@pytest.mark.parametrize("shape", [(3, 5, 16), (3, 2, 4, 16)])
@pytest.mark.parametrize("channels", [4, 16])
@pytest.mark.parametrize(
    "mlp", [(Mlp, {}), (Mlp, {"bias": False}), (GluMlp, {}), (SwiGLU, {"norm_layer": nn.LayerNorm})]
)
@torch.no_grad()
def test_with_the_dense_weights_it_equals_the_dense_network(mlp, channels: int, shape) -> None:
    kind, options = mlp
    dense, tokens = network(kind, **options), torch.randn(*shape)
    moe = copy.deepcopy(dense)
    add_experts(moe, TASKS, channels)
    moe.load_state_dict(split_experts(dense.state_dict(), TASKS, channels))  # strict: same names
    assert expert_names(moe.state_dict()) == TASKS and expert_width(moe.state_dict()) == channels
    with routing({"ships": 3}):
        assert torch.equal(moe(tokens), dense(tokens))
    with routing({"roads": 2, "ships": 1}):
        torch.testing.assert_close(moe(tokens), dense(tokens))


def test_ffns_of_several_widths_give_the_same_share_to_experts() -> None:
    stages = nn.Sequential(*(nn.ModuleDict({"mlp": Mlp(width)}) for width in (12, 24, 48)))
    dense = stages.state_dict()
    add_experts(stages, TASKS, 20)
    assert [len(stages[i].mlp.experts["roads"].weight) for i in range(3)] == [5, 10, 20]
    assert [len(stages[i].mlp.fc2.weight) for i in range(3)] == [7, 14, 28]
    stages.load_state_dict(split_experts(dense, TASKS, 20))


def test_recomputation_after_another_batch_uses_the_counts_of_its_own() -> None:
    """Also in the threads of the backward pass, and for a second backward pass."""

    def gradients(call) -> list[torch.Tensor]:
        net = network()
        add_experts(net, TASKS, 4)
        with routing({"roads": 2, "ships": 1}):
            first = call(net, tokens)
        with routing({"ships": 3}):
            call(net, tokens)
        thread = Thread(target=lambda: first.square().sum().backward(retain_graph=True))
        thread.start()
        thread.join()
        first.sum().backward()
        return [parameter.grad for parameter in net.parameters()]

    tokens = torch.randn(3, 5, 16, requires_grad=True)
    plain = gradients(lambda net, x: net(x))
    for one, other in zip(plain, gradients(recompute), strict=True):
        assert torch.equal(one, other)


def test_a_copy_has_experts_of_its_own() -> None:
    net = network()
    add_experts(net, TASKS, 4)
    twin = copy.deepcopy(net)
    with torch.no_grad(), routing({"roads": 3}):
        for parameter in net.parameters():
            parameter.zero_()
        assert twin(torch.zeros(3, 5, 16)).isfinite().all() and not net[0].mlp(torch.ones(3, 5, 16)).any()
        assert twin[0].mlp(torch.ones(3, 5, 16)).any()
    assert len(twin.state_dict()) == len(net.state_dict())


def test_threads_have_a_routing_of_their_own() -> None:
    net, results = network(), {}
    add_experts(net, TASKS, 4)
    tokens = torch.randn(3, 5, 16)

    def other() -> None:
        with routing({"roads": 3}):
            results["roads"] = net(tokens)

    with torch.no_grad(), routing({"ships": 3}):
        thread = Thread(target=other)
        thread.start()
        thread.join()
        results["ships"] = net(tokens)
    assert not torch.equal(results["roads"], results["ships"])


def test_a_network_that_cannot_be_routed_says_so() -> None:
    net = network()
    add_experts(net, TASKS, 4)
    with pytest.raises(RuntimeError, match="inside `routing"):
        net(torch.zeros(3, 5, 16))
    with pytest.raises(ValueError, match="expert_channels must be between 1 and 16, got 17"):
        add_experts(network(), TASKS, 17)
