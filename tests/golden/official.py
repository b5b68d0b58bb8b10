"""The released network, written a second time from its definition in plain torch: the truth of the golden tests.

Works on the official layout directly: a dict of numpy arrays under `resnet/...` keys with HWIO kernels. Weights are
standardized in every forward, in the input's dtype, nothing is fused. Facts: bit_pytorch/models.py of the release.
"""

import numpy as np
import torch
from torch.nn import functional as F

WS_EPS, GN_EPS, GROUPS = 1e-10, 1e-5, 32


def seeded_weights(depths, width, num_classes, seed=0):
    """Arrays of an official checkpoint with random content; norms and head away from their initial values."""
    rng = np.random.default_rng(seed)
    arrays = {}

    def kernel(key, k, i, o):
        arrays[f"resnet/{key}/standardized_conv2d/kernel"] = rng.normal(0.01, 0.05, (k, k, i, o))

    def norm(key, channels):
        arrays[f"resnet/{key}group_norm/gamma"] = rng.normal(1, 0.2, channels)
        arrays[f"resnet/{key}group_norm/beta"] = rng.normal(0, 0.2, channels)

    c = int(64 * width)
    kernel("root_block", 7, 3, c)
    cin = c
    for b, depth in enumerate(depths, 1):
        cout = c * 4 * 2 ** (b - 1)
        mid = cout // 4
        for u in range(1, depth + 1):
            unit = f"block{b}/unit{u:02d}"
            if u == 1:
                kernel(f"{unit}/a/proj", 1, cin, cout)
            for part, k, i, o in (("a", 1, cin, mid), ("b", 3, mid, mid), ("c", 1, mid, cout)):
                norm(f"{unit}/{part}/", i)
                kernel(f"{unit}/{part}", k, i, o)
            cin = cout
    norm("", cin)
    arrays["resnet/head/conv2d/kernel"] = rng.normal(0, 0.05, (1, 1, cin, num_classes))
    arrays["resnet/head/conv2d/bias"] = rng.normal(0, 0.1, num_classes)
    return arrays


def to_tensors(arrays, dtype=torch.float64):
    """Leaf tensors with gradients, still in the official layout."""
    return {key: torch.tensor(value, dtype=dtype).requires_grad_() for key, value in arrays.items()}


def std_conv(p, key, x, stride=1):
    w = p[f"resnet/{key}/standardized_conv2d/kernel"].permute(3, 2, 0, 1)
    mean = w.mean(dim=(1, 2, 3), keepdim=True)
    var = ((w - mean) ** 2).mean(dim=(1, 2, 3), keepdim=True)
    w = (w - mean) / torch.sqrt(var + WS_EPS)
    return F.conv2d(x, w, stride=stride, padding=(w.shape[2] - 1) // 2)


def norm_relu(p, key, x):
    y = F.group_norm(x, GROUPS, p[f"resnet/{key}group_norm/gamma"], p[f"resnet/{key}group_norm/beta"], GN_EPS)
    return torch.relu(y)


def forward(p, depths, x):
    """Logits of images x (N, 3, H, W) under official-layout tensors p."""
    x = std_conv(p, "root_block", x, stride=2)
    x = F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=0.0), kernel_size=3, stride=2)
    for b, depth in enumerate(depths, 1):
        for u in range(1, depth + 1):
            unit = f"block{b}/unit{u:02d}"
            stride = 2 if u == 1 and b > 1 else 1
            out = norm_relu(p, f"{unit}/a/", x)
            shortcut = std_conv(p, f"{unit}/a/proj", out, stride) if u == 1 else x
            out = std_conv(p, f"{unit}/a", out)
            out = std_conv(p, f"{unit}/b", norm_relu(p, f"{unit}/b/", out), stride)
            out = std_conv(p, f"{unit}/c", norm_relu(p, f"{unit}/c/", out))
            x = out + shortcut
    x = norm_relu(p, "", x).mean(dim=(2, 3))
    return x @ p["resnet/head/conv2d/kernel"][0, 0] + p["resnet/head/conv2d/bias"]


def write(arrays, path):
    """Save the arrays as an official .npz; returns the path."""
    np.savez(path, **arrays)
    return path
