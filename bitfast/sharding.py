"""FSDP2 on the folded network: every process keeps a share of the output filters, whole filters each."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from . import distributed
from .nn import StdConv2d
from .runtime import is_main


def mesh(device):
    """All processes of the run, on devices of this type."""
    return init_device_mesh(device.type, (distributed.ranks(),))


def shard(model, network, over):
    """Split a model and its folded twin over the processes, on dimension 0 of every convolution and of the head.

    Standardization is local to an output filter, so a process that has whole filters steps its share alone. A block's
    weights are gathered for its forward and again for its backward; their gradients are summed to the process that
    steps them. Norms are small and shared by model and twin: every process keeps them whole.

    model    its weights are replaced by DTensors of the raw weights
    network  fold(model), without hooks of its own
    over     the DeviceMesh
    """
    convs = {name: module for name, module in model.named_modules() if isinstance(module, StdConv2d)}
    head = [name for name, _ in network.named_parameters() if name.startswith("head.")]
    for name in convs:
        module = network.get_submodule(name)
        module.weight = nn.Parameter(module.weight.detach().contiguous(), module.weight.requires_grad)
    split = {*(f"{name}.weight" for name in convs), *head}
    whole = {p for name, p in network.named_parameters() if name not in split}
    for unit in (*_units(network), network):
        fully_shard(unit, mesh=over, ignored_params=whole)
        unit.set_force_sum_reduction_for_comms(True)
        unit.set_gradient_divide_factor(1.0)
        unit.register_forward_pre_hook(_tell_caches)
    for name in head:
        _replace(model, name, network.get_parameter(name))
    for name, conv in convs.items():
        share = distribute_tensor(conv.weight.detach(), over, [Shard(0)], src_data_rank=None)
        own = share.to_local().clone(memory_format=torch.contiguous_format)  # a view would keep all of the weight
        share = DTensor.from_local(own, over, [Shard(0)], run_check=False, shape=share.shape, stride=share.stride())
        _replace(model, f"{name}.weight", nn.Parameter(share, conv.weight.requires_grad))


def is_sharded(network):
    """Whether a forward of this network gathers weights, so that all processes have to do as many as each other."""
    return any(isinstance(p, DTensor) for p in network.parameters())


def local(tensor):
    """This process's share of a DTensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor):
    """All of a DTensor, gathered, which every process has to ask for; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def add_up(norms, owners):
    """The norms of tensors that belong to parameters `owners`, those of split ones over the shares of all processes."""
    norms = torch.stack(norms)
    split = torch.tensor([isinstance(p, DTensor) for p in owners], device=norms.device)
    if split.any():
        squares = torch.where(split, norms, 0).square()
        dist.all_reduce(squares)
        norms = torch.where(split, squares.sqrt(), norms)
    return norms


def share_of(tensor, like):
    """A whole tensor, the same in all processes, as `like` is: on its device, and split if it is a DTensor."""
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def gather(model):
    """Make the parameters of a split model whole again, on the CPU, in the first process; in the others they stay."""
    for name, parameter in list(model.named_parameters()):
        if isinstance(parameter, DTensor):
            full = whole(parameter.detach())
            if is_main():
                _replace(model, name, nn.Parameter(full.cpu(), parameter.requires_grad))


def _units(network):
    return [network.stem, *(block for stage in network.stages for block in stage.blocks), network.head]


def _replace(model, name, parameter):
    owner, _, leaf = name.rpartition(".")
    model.get_submodule(owner)._parameters[leaf] = parameter


def _tell_caches(unit, inputs):
    """Weights are gathered anew under the old version counter; whoever keeps what was made of them has to see that."""
    if not torch.is_grad_enabled():
        torch.autograd.graph.increment_version(list(unit.parameters()))
