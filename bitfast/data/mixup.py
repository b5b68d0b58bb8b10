"""MixUp of a batch with its permuted self (Zhang et al. 2018, 1710.09412)."""

import torch


def mix(images, partner, lam):
    """lam * x + (1 - lam) * x[partner], computed in fp32.

    Shapes:  images (N, C, H, W), memory layout kept; partner (N,) integers, numpy or torch; lam a float
    Dtypes:  returns fp32; `images` itself when lam == 1
    """
    if lam == 1:
        return images
    partner = torch.as_tensor(partner, device=images.device)
    x = images.float()
    return x[partner].mul_(1 - lam).add_(x, alpha=lam)
