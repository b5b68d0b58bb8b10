"""GradientSum: the gradients of all processes added up, once per step, while its last backward still runs."""

from itertools import accumulate

import torch
import torch.distributed as dist

from . import distributed

BUCKET_BYTES = 25 * 2**20


class GradientSum:
    """Replaces the gradient of each parameter by its sum over the processes.

        sums = GradientSum(parameters)
        loss(first micro-batch).backward()
        sums.last();  loss(last micro-batch).backward()
        sums.finish()

    Gradients are of a loss already divided by the size of the global batch, so their sum is the gradient of its mean.
    Standardization's backward is linear: what is added here are gradients of standardized weights, and each process
    projects the sum. Buckets are sent in one order whichever becomes ready first, so all processes do the same; where a
    process has no gradient it adds zeros. After finish() the gradients of all processes are the same to the bit.

    parameters  in the order of the forward: the last ones' gradients come first
    dtype       of what is sent and added; default each gradient's own
    """

    def __init__(self, parameters, dtype=None):
        parameters = [p for p in parameters if p.requires_grad] if distributed.ranks() > 1 else []
        self._buckets = [_Bucket(members, dtype) for members in _split(reversed(parameters), dtype)]
        self._of = {p: bucket for bucket in self._buckets for p in bucket.parameters}
        self._sent = None  # how many buckets of this step are on their way, from last() to finish()
        for p in self._of:
            p.register_post_accumulate_grad_hook(self._ready)

    def last(self):
        """The next backward is the last of this step: what it finishes can be sent."""
        self._sent = 0
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)

    def finish(self):
        """Send what was not, and wait for the sums."""
        if self._sent is None:
            self.last()
        for bucket in self._buckets[self._sent :]:
            bucket.send()
        self._sent = None
        for bucket in self._buckets:
            bucket.receive()

    def _ready(self, parameter):
        if self._sent is None:
            return
        self._of[parameter].missing -= 1
        while self._sent < len(self._buckets) and not self._buckets[self._sent].missing:
            self._buckets[self._sent].send()
            self._sent += 1


class _Bucket:
    def __init__(self, parameters, dtype):
        self.parameters, self.missing = parameters, 0
        self._dtype = dtype or parameters[0].dtype
        self._flat = self._work = None

    def send(self):
        size = sum(p.numel() for p in self.parameters)
        self._flat = torch.zeros(size, dtype=self._dtype, device=self.parameters[0].device)
        have = [(view, p.grad) for view, p in zip(self._views(), self.parameters, strict=True) if p.grad is not None]
        if have:
            torch._foreach_copy_(*map(list, zip(*have, strict=True)))
        self._work = dist.all_reduce(self._flat, async_op=True)

    def receive(self):
        self._work.wait()
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.empty_like(p)
        torch._foreach_copy_([p.grad for p in self.parameters], self._views())
        self._flat = self._work = None

    def _views(self):
        """The flat sum as tensors of the parameters' shapes and memory formats."""
        ends = accumulate(p.numel() for p in self.parameters)
        return [
            self._flat.as_strided(p.shape, p.stride(), end - p.numel())
            for end, p in zip(ends, self.parameters, strict=True)
        ]


def _split(parameters, dtype):
    """Neighbours of one dtype and device, up to BUCKET_BYTES of them."""
    open_buckets, full = {}, []
    for p in parameters:
        kind = (p.dtype, p.device)
        members, size = open_buckets.get(kind, ([], 0))
        members.append(p)
        size += p.numel() * (dtype or p.dtype).itemsize
        if size >= BUCKET_BYTES:
            full.append(members)
            members, size = [], 0
        open_buckets[kind] = members, size
    return full + [members for members, _ in open_buckets.values() if members]
