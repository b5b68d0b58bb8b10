"""Intermediate features of a network: its maps, for detection and segmentation heads; or one vector per stage."""

from torch import nn

from .feature_info import FeatureInfo, take_indices
from .model import ResNetV2
from .numerics import WS_EPS


class FeatureNetwork(ResNetV2):
    """The stages of a ResNetV2 up to the last feature asked for; nothing behind it is built.

    out_indices  of the features: 0 the stem's convolution, i the sum that stage i hands on, before any norm; None for
                 all, n for the last n, or a sequence, negative from the end

    Input (N, in_chans, H, W); output [(N, C_i, H / r_i, W / r_i)], sizes rounded up, in the order of the network;
    `feature_info.channels()` and `.reduction()` are the C_i and r_i. State-dict names are the ResNetV2's.
    Raises UsageError on an index that is not there.
    """

    def __init__(self, depths, width, in_chans=3, eps=WS_EPS, *, out_indices=None):
        wanted = take_indices(1 + len(depths), out_indices)
        super().__init__(depths[: wanted[-1]], width, num_classes=0, in_chans=in_chans, eps=eps)
        self.norm = nn.Identity()
        self.feature_info = FeatureInfo(self.feature_info, wanted)

    def forward(self, x):
        return self.forward_intermediates(x, self.feature_info.out_indices, stop_early=True, intermediates_only=True)

    def _normalized(self, x, residual=None):
        return x if residual is None else x + residual


def pooled_stages(network, images):
    """What a linear head would get of `network`, raw or folded, cut after each of its stages: a list of (N, C_i).

        feature_i = mean over the map of ReLU(GroupNorm(sum that stage i hands on))

    The norm is the one that the next stage begins with, which is made for these features; for the last stage it is the
    network's own. float32 at least. All of them in one forward.
    """
    x, residual = network.stem(images.to(network.stem.conv.weight.dtype)), None
    norms = [stage.blocks[0].norm1 for stage in network.stages[1:]] + [network.norm]
    features = []
    for stage, norm in zip(network.stages, norms, strict=True):
        x, residual = stage(x, residual)
        normalized, x = norm(x, residual)
        residual = None
        features.append(network.head(normalized, pre_logits=True))
    return features
