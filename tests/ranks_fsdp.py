"""The cases of tests/test_torch_fsdp.py, which the processes of tests/ranks.py serve."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ranks import gradient, halves, message_of
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

from terngrad_kernels.torch import TernGradState
from terngrad_kernels.torch_fsdp import apply_terngrad

#: Of the root's own layers and of two blocks: odd sizes, fewer rows than ranks, biases, small layers, a long row.
SHAPES = (((41, 70), (70,)), ((2563, 3), (5,), (3, 700), (30, 30)), ((1, 2600), (64, 20)))
#: Modules in the order of `named_modules`, and of each the numbers of its layers.
NAMES = ("", "blocks.0", "blocks.1")
LAYERS = ((0, 1), (2, 3, 4, 5), (6, 7))


class Block(torch.nn.Module):
    """Adds to its input what has given gradients."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = torch.nn.ParameterList(torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes)

    def forward(self, z: torch.Tensor, given: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """None: a layer that is not used."""
        parts = [(layer * x).sum() for layer, x in zip(self.layers, given, strict=True) if x is not None]
        return z + torch.stack(parts).sum()


class Net(torch.nn.Module):
    """Two blocks, called in a given order, and layers of its own. The first block's input needs no gradient."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        own, *others = SHAPES
        self.blocks = torch.nn.ModuleList(Block(shapes, dtype) for shapes in others)
        self.own = Block(own, dtype)

    def forward(self, given: Sequence[Sequence[torch.Tensor | None]], calls: Sequence[int] = (0, 1)) -> torch.Tensor:
        z = torch.zeros((), dtype=self.own.layers[0].dtype)
        for i in calls:
            z = self.blocks[i](z, given[i + 1])
        return self.own(z, given[0])


def given(step: int, dtype: torch.dtype = torch.float32) -> list[list[torch.Tensor | None]]:
    return [
        [
            torch.from_numpy(gradient(dist.get_rank(), step, number, shape)).to(dtype)
            for number, shape in zip(numbers, shapes, strict=True)
        ]
        for numbers, shapes in zip(LAYERS, SHAPES, strict=True)
    ]


def shard(model: torch.nn.Module, **options: Any) -> Any:
    options.setdefault("mesh", _mesh[0])
    for block in model.blocks:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def modules(model: torch.nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def clear(model: torch.nn.Module) -> None:
    for layer in model.parameters():
        layer.grad = None


def shards(model: torch.nn.Module) -> list[Any]:
    """This rank's shards of the gradients, in the order of the layers' numbers."""
    found = [layer.grad for block in (model.own, *model.blocks) for layer in block.layers]
    return [None if grad is None else grad.to_local().clone().numpy() for grad in found]


def backward(model: torch.nn.Module, what: Any, *calls: Any) -> list[Any]:
    clear(model)
    model(what, *calls).backward()
    return shards(model)


def sharded(
    state: TernGradState, dtype: torch.dtype = torch.float32, policy: dict[str, str] | None = None, **options: Any
) -> Any:
    types = {name: getattr(torch, value) for name, value in (policy or {}).items()}
    model = shard(Net(dtype), mp_policy=MixedPrecisionPolicy(**types), **options)
    apply_terngrad(model, state)
    return model


_meshes: dict[int, DeviceMesh] = {}
_nodes: list[Any] = []
_mesh: list[DeviceMesh] = []  # of the case that runs


def among_the_first(case: Callable[..., Any]) -> Callable[..., Any]:
    """A case among the first ranks, as many as its first argument says; the others have no part in it."""

    @functools.wraps(case)
    def run(world: int, *arguments: Any) -> Any:
        if not _nodes:  # all groups at once: later, ranks would give them different names
            for size in range(2, dist.get_world_size() + 1):
                group = dist.new_group(list(range(size)))
                if dist.get_rank() < size:
                    _meshes[size] = DeviceMesh.from_group(group, "cpu")
            _nodes.extend(halves())
        if dist.get_rank() >= world:
            return None
        _mesh[:] = [_meshes[world]]
        return case(*arguments)

    return run


def is_last() -> bool:
    return dist.get_rank() == _mesh[0].size() - 1


# ---- cases


def means(options: dict[str, Any], ways: dict[str, Any]) -> Any:
    """Shards of the averages of two steps, what they cost, and the parameters after them."""
    state = TernGradState(**options)
    policy = ways.get("policy", {})
    placed = {"shard_placement_fn": lambda layer: Shard(1) if layer.shape == (64, 20) else None}
    model = sharded(
        state,
        policy=policy,
        reshard_after_forward=ways.get("reshard", True),
        **(placed if "columns" in ways else {}),
    )
    for module in modules(model):
        if "factor" in ways:
            module.set_gradient_divide_factor(ways["factor"])
        module.set_force_sum_reduction_for_comms("sum" in ways)
    if "prefetch" in ways:
        model.blocks[0].set_modules_to_forward_prefetch([model.blocks[1]])
        model.blocks[1].set_modules_to_backward_prefetch([model.blocks[0]])
        model.set_modules_to_backward_prefetch([model.blocks[1], model.blocks[0]])
        model.set_separate_reduce_scatter_group()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    dtype = getattr(torch, policy.get("param_dtype", "float32"))
    found = []
    for step in range(2):
        found.append(backward(model, given(step, dtype)))
        optimizer.step()
    assert state.step == 2
    report = state.report()
    assert sorted(row["bucket"] for row in report.buckets) == list(NAMES)
    whole = [layer.detach().full_tensor().numpy() for layer in model.parameters()]
    return found, (report.bytes_sent, report.bytes_float32, report.bytes_inside), whole


def accumulated() -> Any:
    """Averages of two backward passes that are reduced together; of one with which not all layers have a gradient."""
    state = TernGradState()
    model = sharded(state)
    model.set_requires_gradient_sync(False)
    model(given(0)).backward()
    assert state.step == 0
    model.set_requires_gradient_sync(True)
    model(given(1)).backward()
    assert state.step == 1
    found = [shards(model)]
    some = given(2)
    some[0][1] = some[1][0] = None
    found.append(backward(model, some))
    found.append(backward(model, given(3), (1,)))  # one block stays unused
    model.set_reduce_scatter_unused_params(True)
    found.append(backward(model, some))
    found.append(backward(model, given(4), (0, 1, 0)))  # a block that is called twice
    model.set_reduce_scatter_unused_params(False)
    found.append(backward(model, given(5), (0, 1, 0)))
    model.blocks[1].layers[1].requires_grad_(False)
    found.append(backward(model, given(6)))
    assert state.step == 7
    assert len(state.report().buckets) == 3
    return found


def failing() -> Any:
    """Averages of the step after a backward pass that failed when one block had its averages."""
    state = TernGradState()
    model = sharded(state)
    backward(model, given(0))

    def fails(_grad: torch.Tensor) -> None:
        raise KeyError("in the middle")

    handle = model.blocks[0].register_forward_hook(lambda _module, _inputs, z: z.register_hook(fails) and None)
    try:
        model(given(1)).backward()
    except KeyError:
        handle.remove()
    else:
        raise AssertionError("no KeyError")
    model.reset_iter_state()
    for module in modules(model):  # of the layers that were not yet averaged, FSDP keeps what it has
        for group in module._get_fsdp_state()._fsdp_param_groups:
            for parameter in group.fsdp_params:
                parameter.unsharded_param.grad = parameter.unsharded_accumulated_grad = None
    assert state.step == 1
    found = backward(model, given(1))
    assert state.step == 2
    return found


def started_late(options: dict[str, Any], policy: dict[str, str]) -> Any:
    """Shards with start_step = 1 and those of FSDP itself."""
    types = {name: getattr(torch, value) for name, value in policy.items()}
    dtype = types.get("param_dtype", torch.float32)
    model = sharded(TernGradState(start_step=1, **options), policy=policy)
    plain = shard(Net(), mp_policy=MixedPrecisionPolicy(**types))
    return [(backward(model, given(step, dtype)), backward(plain, given(step, dtype))) for step in range(2)]


def not_finite() -> Any:
    """Shards after the last rank had a NaN in a ternary layer and an infinity in a carried one, and a step later."""
    model = sharded(TernGradState())
    what: Any = given(0)
    if is_last():
        what[0][0][3, 4] = np.nan
        what[0][1][5] = np.inf
    return backward(model, what), backward(model, given(1))


def hierarchical(options: dict[str, Any], path: str) -> Any:
    """Shards of four steps on two nodes of two ranks; then of the last two again, after a checkpoint."""
    between, inside = _nodes
    mesh = DeviceMesh.from_group(inside, "cpu")

    def fresh() -> tuple[TernGradState, Any]:
        state = TernGradState(strategy="hierarchical", process_group=between, local_group=inside, **options)
        return state, sharded(state, mesh=mesh)

    state, model = fresh()
    found = [backward(model, given(step)) for step in range(2)]
    path = f"{path}/{dist.get_rank()}"
    torch.save(state.state_dict(), path)
    found += [backward(model, given(step)) for step in range(2, 4)]
    assert state.step == 4
    report = state.report()
    state, model = fresh()
    state.load_state_dict(torch.load(path, weights_only=True))
    again = [backward(model, given(step)) for step in range(2, 4)]
    return found, again, (report.bytes_sent, report.bytes_float32, report.bytes_inside)


def two_dimensions() -> Any:
    """Shards where FSDP itself averages over the other dimension of the mesh; without and with two backward passes."""
    mesh = DeviceMesh("cpu", [[0, 1], [2, 3]], mesh_dim_names=("replicate", "shard"))
    state = TernGradState()
    model = sharded(state, mesh=mesh)
    found = [backward(model, given(0))]
    clear(model)
    model.set_requires_all_reduce(False)
    model(given(1)).backward()
    model.set_requires_all_reduce(True)
    model(given(2)).backward()
    assert state.step == 3
    return [*found, shards(model)]


def resumed(path: str) -> Any:
    """Shards of two steps that follow two: without a break, from a checkpoint, from a pickle."""
    state = TernGradState(seed=5)
    model = sharded(state)
    for step in range(2):
        backward(model, given(step))
    torch.save(state.state_dict(), f"{path}/{dist.get_rank()}")
    loaded, pickled = TernGradState(), pickle.dumps(state)
    loaded.load_state_dict(torch.load(f"{path}/{dist.get_rank()}", weights_only=True))
    found = [[backward(model, given(step)) for step in range(2, 4)]]
    for other in (loaded, pickle.loads(pickled)):
        again = sharded(other)
        found.append([backward(again, given(step)) for step in range(2, 4)])
    return found


def trained(ternary: bool, way: str) -> Any:
    """The loss of a small classification after training, averaged over ranks, and the parameters."""
    torch.manual_seed(0)
    truth = torch.randn(32, 10)
    layers = [torch.nn.Linear(32, 64), torch.nn.Linear(64, 64), torch.nn.Linear(64, 10)]

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList(layers)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks[:-1]:
                if way == "recomputed":
                    x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
                else:
                    x = block(x)
                x = x.relu()
            return self.blocks[-1](x)

    model: Any = Classifier()
    reference = copy.deepcopy(model).requires_grad_(False)
    if way == "together":  # two modules with one group of parameters
        fully_shard([*model.blocks[:2]], mesh=_mesh[0])
        fully_shard(model, mesh=_mesh[0])
    else:
        shard(model)
    if ternary:
        apply_terngrad(model, TernGradState(model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=80)
    draw = torch.Generator().manual_seed(dist.get_rank())
    losses = []
    for _ in range(80):
        x = torch.randn(32, 32, generator=draw)
        loss = torch.nn.functional.cross_entropy(model(x), (x @ truth).argmax(1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    whole = [layer.detach().full_tensor().numpy() for layer in model.parameters()]
    assert [w.shape for w in whole] == [tuple(layer.shape) for layer in reference.parameters()]
    return float(np.mean(losses[-20:])), whole


# ---- faults


def differing(options: dict[str, Any], nested: bool) -> Any:
    """What each rank says where the last one has another option or another model."""
    last = is_last()
    model: Any = Net()
    if nested and last:
        model.own.layers[1] = torch.nn.Parameter(torch.zeros(71))
    state = TernGradState(**(options if last else {}))
    shard(model)
    apply_terngrad(model, state)
    what: Any = given(0)
    if nested and last:
        what[0][1] = torch.ones(71)
    return message_of(lambda: backward(model, what))[0]


def refused() -> Any:
    """What is said of states, models and a PyTorch that cannot be served."""
    whole = _mesh[0].get_group()
    alone = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    plain = torch.nn.Linear(3, 3)
    model = shard(Net())
    found = []

    def tried(*arguments: Any) -> None:
        try:
            apply_terngrad(*arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            found.append(f"{type(error).__name__}: {error}")
        else:
            found.append("nothing")

    tried(plain, TernGradState())
    tried(model, None)
    tried(model, TernGradState(strategy="sum"))
    tried(model, TernGradState(error_feedback=True, clip=1.5))
    tried(model, TernGradState(process_group=whole))
    tried(model, TernGradState(strategy="hierarchical", process_group=whole, local_group=alone))
    tried(model, TernGradState(strategy="hierarchical", process_group=whole, local_group=whole))
    mesh = DeviceMesh.from_group([alone, whole], "cpu", [[0, 1]], mesh_dim_names=("replicate", "shard"))
    hsdp = fully_shard(torch.nn.Linear(8, 8), mesh=mesh)
    tried(hsdp, TernGradState(strategy="hierarchical", process_group=alone, local_group=whole))
    setter = FSDPModule.set_custom_reduce_scatter
    del FSDPModule.set_custom_reduce_scatter
    tried(model, TernGradState())
    FSDPModule.set_custom_reduce_scatter = setter
    group = model._get_fsdp_state()._fsdp_param_groups[0]
    unused = group.__dict__.pop("reduce_scatter_unused_params")
    tried(model, TernGradState())
    group.reduce_scatter_unused_params = unused
    groups = model._get_fsdp_state()._fsdp_param_groups
    groups.append(group)
    tried(model, TernGradState())
    groups.pop()
    mesh_info, group.mesh_info = group.mesh_info, None
    tried(model, TernGradState())
    group.mesh_info = mesh_info
    tried(model, TernGradState())
    tried(model, TernGradState())  # and once more
    # Another FSDP than the one that is known.
    group.reduce_scatter_unused_params = True
    note = type(group).post_backward
    group.post_backward = lambda *unused: note(group, *unused)
    found.append(message_of(lambda: backward(model, given(0)))[0])
    return found


CASES: dict[str, Callable[..., Any]] = {
    case.__name__: among_the_first(case)
    for case in (
        means,
        accumulated,
        failing,
        started_late,
        not_finite,
        hierarchical,
        two_dimensions,
        resumed,
        trained,
        differing,
        refused,
    )
}
