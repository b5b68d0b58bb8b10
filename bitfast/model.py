"""The BiT network: a pre-activation ResNet-v2 with GroupNorm and weight standardization, under timm's parameter names.

Source: BiT paper 1912.11370 and bit_pytorch/models.py for the numerics; timm `resnetv2_*_bit` for state-dict names.
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .errors import UsageError
from .feature_info import feature_info, take_indices
from .nn import GroupNormAct, StdConv2d, Stem, norm_convs, one_pixel
from .numerics import WS_EPS
from .ops import stem_pool
from .timm_config import pretrained_cfg
from .variants import memory_mode

# Blocks that checkpointing runs again together. Their input is a pair, larger than what one block keeps for backward,
# so that keeping it for every block would save nothing.
CHECKPOINT_BLOCKS = 4


class Projection(nn.Module):
    """The 1x1 StdConv of a shortcut that changes shape, on the pre-activated tensor; the block's stride is on it."""

    def __init__(self, in_channels, out_channels, stride, ws_eps):
        super().__init__()
        self.conv = StdConv2d(in_channels, out_channels, 1, stride, ws_eps=ws_eps)

    def forward(self, x):
        return self.conv(x)


class Bottleneck(nn.Module):
    """Pre-activation bottleneck: three times norm -> ReLU -> conv (1x1, 3x3 with the stride, 1x1), plus a shortcut.

    The sum of branch and shortcut is not taken here but by the next norm, in one pass with its statistics: forward
    takes and returns the pair (x, residual) whose sum is the residual stream; residual is None at the stem.
    With memory "save" normalized images are made again in backward instead of kept.
    """

    memory = "fast"

    def __init__(self, in_channels, out_channels, stride, ws_eps):
        super().__init__()
        mid = out_channels // 4
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = Projection(in_channels, out_channels, stride, ws_eps)
        self.norm1 = GroupNormAct(in_channels)
        self.conv1 = StdConv2d(in_channels, mid, 1, ws_eps=ws_eps)
        self.norm2 = GroupNormAct(mid)
        self.conv2 = StdConv2d(mid, mid, 3, stride, 1, ws_eps=ws_eps)
        self.norm3 = GroupNormAct(mid)
        self.conv3 = StdConv2d(mid, out_channels, 1, ws_eps=ws_eps)

    def forward(self, x, residual=None):
        first = [self.conv1] if self.downsample is None else [self.conv1, self.downsample.conv]
        (out, *shortcut), stream = self._norm_convs(self.norm1, first, x, residual)
        (out,), _ = self._norm_convs(self.norm2, [self.conv2], out)
        (out,), _ = self._norm_convs(self.norm3, [self.conv3], out)
        return out, (shortcut[0] if shortcut else stream)

    def _norm_convs(self, norm, convs, x, residual=None):
        return norm_convs(norm, convs, x, residual, save_memory=self.memory == "save")


class Stage(nn.Module):
    """Blocks of one resolution; the first carries stride and projection.

    With `grad_checkpointing`, of every few blocks the input alone is kept for backward, and they are run again there.
    """

    grad_checkpointing = False

    def __init__(self, in_channels, out_channels, depth, stride, ws_eps):
        super().__init__()
        self.blocks = nn.ModuleList(
            Bottleneck(out_channels if i else in_channels, out_channels, 1 if i else stride, ws_eps)
            for i in range(depth)
        )

    def forward(self, x, residual=None):
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return _in_turn(self.blocks, x, residual)
        for first in range(0, len(self.blocks), CHECKPOINT_BLOCKS):
            blocks = self.blocks[first : first + CHECKPOINT_BLOCKS]
            x, residual = checkpoint(_in_turn, blocks, x, residual, use_reentrant=False, preserve_rng_state=False)
        return x, residual


def _in_turn(blocks, x, residual):
    for block in blocks:
        x, residual = block(x, residual)
    return x, residual


class Head(nn.Module):
    """Global average pool, dropout, and a linear classifier kept as a 1x1 convolution (`head.fc`), zero-initialized as
    in BiT.

    num_classes=0 leaves the pooled features, global_pool="" leaves out the pool: a map of logits or features.
    The pool accumulates in float32 at least; fc runs in its own dtype.
    """

    def __init__(self, features, num_classes, drop_rate=0.0, global_pool="avg", *, device=None, dtype=None):
        super().__init__()
        if global_pool not in ("avg", ""):
            raise UsageError(f"unknown global_pool {global_pool!r}: it must be 'avg', or '' for none")
        if num_classes < 0:
            raise UsageError(f"num_classes is {num_classes}: it must be at least 1, or 0 for no classifier")
        self.global_pool, self.drop_rate = global_pool, drop_rate
        self.fc = nn.Identity()
        if num_classes:
            self.fc = nn.Conv2d(features, num_classes, 1, device=device, dtype=dtype)
            nn.init.zeros_(self.fc.weight)
            nn.init.zeros_(self.fc.bias)

    def forward(self, x, pre_logits=False):
        if self.global_pool:  # with the channels last, so that x gets a gradient of its own layout
            dtype = torch.promote_types(x.dtype, torch.float32)
            x = x.permute(0, 2, 3, 1).mean((1, 2), dtype=dtype)[..., None, None]
        if isinstance(self.fc, nn.Conv2d):
            x = x.to(self.fc.weight.dtype)
        x = nn.functional.dropout(x, self.drop_rate, self.training)
        if self.global_pool:
            return x.flatten(1) if pre_logits else one_pixel(self.fc, x)
        return x if pre_logits else self.fc(x)


class ResNetV2(nn.Module):
    """BiT network of any depth and width (multiples of 0.5).

    depths       blocks per stage, e.g. (3, 4, 6, 3)
    width        channel factor: stem 64 * width, stage outputs 256, 512, 1024, 2048 times width
    num_classes  outputs; 0 returns the pooled features
    in_chans     input channels
    eps          weight-standardization epsilon (1e-10 as released; 1e-8 in timm and HF)
    drop_rate    dropout before the classifier, in training
    global_pool  "avg", or "" for none

    Input (N, in_chans, H, W), RGB in [-1, 1], any size from 1 x 1 on; output (N, num_classes).
    Initialization: convolutions kaiming-normal over fan-out, norms weight 1 and bias 0, head zero.
    Raises ValueError if a width does not divide into 32 groups, or on another global_pool or a negative num_classes.
    """

    def __init__(self, depths, width, num_classes=1000, in_chans=3, eps=WS_EPS, *, drop_rate=0.0, global_pool="avg"):
        super().__init__()
        self.depths, self.width = tuple(depths), width
        self.num_classes, self.in_chans = num_classes, in_chans
        channels = int(64 * width)
        if channels < 1 or channels != 64 * width or channels % 32:
            raise ValueError(f"width must be a positive multiple of 0.5 (32 GroupNorm groups), got {width}")
        self.stem = Stem(in_chans, channels, ws_eps=eps)
        stages, in_channels, stage_channels = [], channels, []
        for i, depth in enumerate(self.depths):
            out_channels = channels * 4 * 2**i
            stages.append(Stage(in_channels, out_channels, depth, 1 if i == 0 else 2, eps))
            in_channels = out_channels
            stage_channels.append(out_channels)
        self.stages = nn.ModuleList(stages)
        self.num_features = self.head_hidden_size = in_channels
        self.feature_info = feature_info(channels, stage_channels)
        self.pretrained_cfg = pretrained_cfg(num_classes, in_chans=in_chans)
        self.norm = GroupNormAct(in_channels)
        self.head = Head(in_channels, num_classes, drop_rate, global_pool)
        for module in self.modules():
            if isinstance(module, StdConv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def default_cfg(self):
        """`pretrained_cfg`: test image and normalization of the weights that the network was made with."""
        return self.pretrained_cfg

    @property
    def ws_eps(self):
        """Weight-standardization epsilon of every StdConv2d, None once folded; set it to change them all."""
        return getattr(self.stem.conv, "ws_eps", None)

    @ws_eps.setter
    def ws_eps(self, eps):
        for module in self.modules():
            if isinstance(module, StdConv2d):
                module.ws_eps = eps

    @property
    def memory(self):
        """What training keeps for backward; set it to change every Bottleneck.

        "fast": what makes it fastest. "save": the input of each norm alone, its normalized image is made again; the
        same values up to rounding. On a CPU in float32 the native operators do that in either mode.
        Raises  ValueError if set to anything else
        """
        return next((module.memory for module in self.modules() if isinstance(module, Bottleneck)), Bottleneck.memory)

    @memory.setter
    def memory(self, memory):
        set_memory(self, memory)

    def forward_features(self, x):
        """(N, in_chans, H, W) -> the normalized, rectified (N, num_features, H/32, W/32) map before pooling."""
        x, residual = self.stem(self._images(x)), None
        for stage in self.stages:
            x, residual = stage(x, residual)
        return self._normalized(x, residual)

    def forward_head(self, x, pre_logits=False):
        """The map of `forward_features` -> logits (N, num_classes), or with pre_logits the pooled (N, num_features)."""
        return self.head(x, pre_logits)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self, x, indices=None, norm=False, stop_early=False, output_fmt="NCHW", intermediates_only=False
    ):
        """Features on the way: (what `forward_features` returns, [features]), or the list alone.

        indices             of `feature_info`: 0 the stem's convolution before its pool, i the sum stage i hands on;
                            None for all, n for the last n, or a sequence, negative from the end
        norm                apply the final norm and ReLU to the last stage's
        stop_early          run nothing behind the last one asked for; the first result is then where it stopped
        intermediates_only  return the list alone
        Features are (N, C, H, W), in the order of the network. Raises ValueError on an index that is not there.
        """
        if output_fmt != "NCHW":
            raise UsageError(f"unknown output_fmt {output_fmt!r}: it must be 'NCHW'")
        wanted = take_indices(1 + len(self.stages), indices)
        stem = self.stem.conv(self._images(x))
        features = [stem] if 0 in wanted else []
        x, residual = stem_pool(stem), None
        stages = self.stages[: wanted[-1]] if stop_early else self.stages
        for i, stage in enumerate(stages, 1):
            x, residual = stage(x, residual)
            if i in wanted:
                x, residual = x if residual is None else x + residual, None
                features.append(self._normalized(x) if norm and i == len(self.stages) else x)
        if intermediates_only:
            return features
        if len(stages) == len(self.stages):
            return self._normalized(x, residual), features
        return x if residual is None else x + residual, features

    def get_classifier(self):
        """`head.fc`: a 1x1 convolution, or Identity with num_classes 0."""
        return self.head.fc

    def reset_classifier(self, num_classes, global_pool=None):
        """A new zero head in place of the old, on its device and in its dtype (without one, those of the norm).

        Raises ValueError on another global_pool than "avg", "" or None (as it is), or on a negative num_classes.
        """
        like = self.head.fc.weight if isinstance(self.head.fc, nn.Conv2d) else self.norm.weight
        pool = self.head.global_pool if global_pool is None else global_pool
        options = {"device": like.device, "dtype": like.dtype}
        head = Head(self.num_features, num_classes, self.head.drop_rate, pool, **options)
        self.head = head.train(self.head.training)
        self.num_classes = num_classes

    def set_grad_checkpointing(self, enable=True):
        """Keep the input of every few blocks alone for backward and run them again there: the same values to the bit.

        Composes with `memory`. Less memory, for almost a second forward in every step.
        """
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def group_matcher(self, coarse=False):
        """timm's patterns of parameter groups from stem to norm: a group per stage (coarse) or per block."""
        blocks = [(r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    def no_weight_decay(self):
        """Parameters that must not decay: none, as in BiT."""
        return set()

    def _images(self, x):
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise ValueError(f"images have shape {tuple(x.shape)}; it must be (N, {self.in_chans}, H, W)")
        return x.to(self.stem.conv.weight.dtype, memory_format=torch.channels_last)

    def _normalized(self, x, residual=None):
        return self.norm(x) if residual is None else self.norm(x, residual)[0]


def set_memory(network, memory):
    """Set `ResNetV2.memory` on every Bottleneck in any module. Raises ValueError unless "fast" or "save"."""
    memory_mode(memory)
    for module in network.modules():
        if isinstance(module, Bottleneck):
            module.memory = memory
