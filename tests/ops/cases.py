"""The inputs that every operator is tested on: real BiT layer shapes at a small N, and awkward ones."""

import zlib
from typing import NamedTuple

import torch
from torch import Tensor

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def viewed(x: Tensor, layout: str, view: str) -> Tensor:
    """The values of `x` in a layout: dense, or as a part or permutation of a larger tensor."""
    memory_format = LAYOUTS[layout]
    if view == "channel_slice":
        return torch.cat([x, x], 1).contiguous(memory_format=memory_format)[:, : x.shape[1]]
    if view == "strided":
        return x.repeat_interleave(2, 3).contiguous(memory_format=memory_format)[..., ::2]
    if view == "transposed":
        return x.transpose(2, 3).contiguous(memory_format=memory_format).transpose(2, 3)
    return x.contiguous(memory_format=memory_format)


class GroupNormCase(NamedTuple):
    """`view`: dense, or a part or permutation of a larger tensor; `mean`, `std`: of x."""

    name: str
    shape: tuple[int, int, int, int]
    groups: int = 32
    layout: str = "channels_last"
    act: str = "relu"
    residual: bool = False
    mean: float = 0.0
    std: float = 1.0
    view: str = "dense"

    def inputs(self, dtype: torch.dtype) -> dict[str, Tensor | None]:
        """x, residual (or None), weight, bias and the gradients dy and ds, the same on every call."""
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))
        parameters = torch.float64 if dtype == torch.float64 else torch.float32
        n, c, h, w = self.shape

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        def image(mean=0.0, std=1.0):
            return viewed((normal(n, c, h, w) * std + mean).to(dtype), self.layout, self.view)

        return {
            "x": image(self.mean, self.std),
            "residual": image() if self.residual else None,
            "weight": (normal(c) * 0.5 + 1).to(parameters),
            "bias": (normal(c) * 0.5).to(parameters),
            "dy": normal(n, c, h, w).to(dtype).contiguous(memory_format=LAYOUTS[self.layout]),
            "ds": normal(n, c, h, w).to(dtype).contiguous(memory_format=LAYOUTS[self.layout]),
        }


GROUP_NORM = [
    GroupNormCase("stage1", (2, 256, 14, 14)),
    GroupNormCase("stage1_contiguous", (2, 256, 14, 14), layout="contiguous"),
    GroupNormCase("stage1_residual", (2, 256, 14, 14), residual=True),
    GroupNormCase("stage1_residual_contiguous", (2, 256, 14, 14), residual=True, layout="contiguous"),
    GroupNormCase("stem_32px", (1, 64, 32, 32)),
    GroupNormCase("stage4_7x7", (2, 2048, 7, 7)),
    GroupNormCase("stage4_7x7_contiguous", (2, 2048, 7, 7), layout="contiguous", residual=True),
    GroupNormCase("x3_192", (3, 192, 9, 5)),
    GroupNormCase("x3_6144", (1, 6144, 4, 4), residual=True),
    GroupNormCase("one_pixel", (3, 192, 1, 1)),
    GroupNormCase("one_pixel_contiguous", (3, 192, 1, 1), layout="contiguous", act="none"),
    GroupNormCase("one_channel_per_group", (2, 32, 6, 7), act="silu"),
    GroupNormCase("one_group", (2, 40, 5, 11), groups=1, act="silu", residual=True),
    GroupNormCase("odd_everything", (3, 33, 13, 7), groups=11),
    GroupNormCase("odd_everything_contiguous", (3, 33, 13, 7), groups=11, layout="contiguous"),
    GroupNormCase("256_per_group", (1, 512, 3, 3), groups=2, act="none"),
    GroupNormCase("small_group_divisor", (2, 24, 20, 20), groups=3),
    GroupNormCase("large_mean", (2, 64, 12, 12), mean=1000.0, std=0.01, act="silu"),
    GroupNormCase("large_mean_contiguous", (2, 64, 12, 12), mean=1000.0, std=0.01, act="none", layout="contiguous"),
    GroupNormCase("empty_batch", (0, 64, 8, 8)),
    GroupNormCase("empty_batch_residual", (0, 64, 8, 8), residual=True, layout="contiguous"),
    GroupNormCase("channel_slice", (2, 64, 6, 6), view="channel_slice", residual=True),
    GroupNormCase("channel_slice_contiguous", (2, 64, 6, 6), view="channel_slice", layout="contiguous"),
    GroupNormCase("strided", (2, 64, 6, 6), view="strided"),
    GroupNormCase("transposed", (2, 64, 6, 5), view="transposed", layout="contiguous", residual=True),
]


class WeightStdCase(NamedTuple):
    """One list of weights; `mean`, `std`: of the weights."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    layout: str = "contiguous"
    mean: float = 0.0
    std: float = 0.05

    def inputs(self, dtype: torch.dtype) -> dict[str, list[Tensor]]:
        """weights and the gradients dw_hat, the same on every call."""
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))

        def normal(shape, mean, std):
            t = (torch.randn(shape, generator=generator, dtype=torch.float64) * std + mean).to(dtype)
            return t.contiguous(memory_format=LAYOUTS[self.layout]) if t.dim() == 4 else t

        return {
            "weights": [normal(shape, self.mean, self.std) for shape in self.shapes],
            "dw_hat": [normal(shape, 0.0, 1.0) for shape in self.shapes],
        }


WEIGHT_STD = [
    WeightStdCase("block", ((64, 256, 1, 1), (64, 64, 3, 3), (256, 64, 1, 1))),
    WeightStdCase("block_channels_last", ((64, 256, 1, 1), (64, 64, 3, 3), (256, 64, 1, 1)), layout="channels_last"),
    WeightStdCase("stem", ((64, 3, 7, 7),), layout="channels_last"),
    WeightStdCase("x3", ((48, 192, 3, 3), (16, 6144, 1, 1))),
    WeightStdCase("odd", ((5, 3, 2, 3), (7, 11), (1, 13, 1, 1))),
    WeightStdCase("odd_channels_last", ((5, 3, 2, 3), (3, 33, 5, 7)), layout="channels_last"),
    WeightStdCase("long_rows", ((3, 10007), (2, 5, 31, 33))),
    WeightStdCase("one_element_rows", ((4, 1, 1, 1),)),
    WeightStdCase("large_mean", ((16, 64, 3, 3),), mean=10.0, std=1e-3),
    WeightStdCase("no_rows", ((0, 8, 3, 3), (4, 8, 1, 1))),
    WeightStdCase("no_weights", ()),
]


class StemPoolCase(NamedTuple):
    """`levels`: x takes so many values on either side of zero, so that windows have equal inputs; 0 for any value."""

    name: str
    shape: tuple[int, int, int, int]
    layout: str = "channels_last"
    levels: int = 0
    view: str = "dense"

    def inputs(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """x and the gradient dy, the same on every call."""
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))
        n, c, h, w = self.shape
        x = torch.randn(self.shape, generator=generator, dtype=torch.float64)
        if self.levels:
            x = (x * self.levels).round().clamp(-self.levels, self.levels)
        dy = torch.randn(n, c, (h + 1) // 2, (w + 1) // 2, generator=generator, dtype=torch.float64)
        return {"x": viewed(x.to(dtype), self.layout, self.view), "dy": viewed(dy.to(dtype), self.layout, "dense")}


STEM_POOL = [
    StemPoolCase("stem_32px", (2, 64, 16, 16)),
    StemPoolCase("stem_32px_contiguous", (2, 64, 16, 16), layout="contiguous"),
    StemPoolCase("equal_inputs", (2, 32, 12, 14), levels=1),
    StemPoolCase("equal_inputs_contiguous", (2, 32, 12, 14), levels=1, layout="contiguous"),
    StemPoolCase("odd_everything", (3, 37, 13, 75)),
    StemPoolCase("odd_everything_contiguous", (3, 37, 13, 75), layout="contiguous"),
    StemPoolCase("x3_192", (1, 192, 9, 6), levels=2),
    StemPoolCase("one_pixel", (3, 17, 1, 1)),
    StemPoolCase("one_pixel_contiguous", (3, 17, 1, 1), layout="contiguous"),
    StemPoolCase("two_by_two", (2, 16, 2, 2)),
    StemPoolCase("two_by_two_contiguous", (2, 16, 2, 2), layout="contiguous"),
    StemPoolCase("one_row", (2, 24, 1, 9)),
    StemPoolCase("one_column_contiguous", (2, 24, 8, 1), layout="contiguous"),
    StemPoolCase("three_columns_contiguous", (1, 5, 4, 3), layout="contiguous", levels=1),
    StemPoolCase("four_columns_contiguous", (1, 5, 3, 4), layout="contiguous", levels=1),
    StemPoolCase("one_channel", (2, 1, 66, 70), layout="contiguous"),
    StemPoolCase("empty_batch", (0, 64, 8, 8)),
    StemPoolCase("empty_batch_contiguous", (0, 64, 8, 8), layout="contiguous"),
    StemPoolCase("channel_slice", (2, 64, 6, 6), view="channel_slice"),
    StemPoolCase("strided_contiguous", (2, 64, 6, 7), view="strided", layout="contiguous"),
]


class NormConvCase(NamedTuple):
    """`kernels`: (outputs, height and width, stride) of each; `mean`, `std`: of x; `shift`: of the norm's bias."""

    name: str
    shape: tuple[int, int, int, int]
    kernels: tuple[tuple[int, int, int], ...]
    groups: int = 32
    layout: str = "channels_last"
    kernel_layout: str = "channels_last"
    residual: bool = False
    mean: float = 0.0
    std: float = 1.0
    shift: float = 0.0
    view: str = "dense"

    @property
    def narrow(self) -> bool:
        """Whether taps of some kernel see nothing but padding."""
        return any(size > 1 and min(self.shape[2:]) <= stride for _, size, stride in self.kernels)

    def inputs(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """x, residual where there is one, weight, bias, kernel0, ... and the gradients dy0, ... and ds."""
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))
        parameters = torch.float64 if dtype == torch.float64 else torch.float32
        n, c, h, w = self.shape

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        def image(channels=c, stride=1, view="dense", mean=0.0, std=1.0):
            values = normal(n, channels, (h - 1) // stride + 1, (w - 1) // stride + 1) * std + mean
            return viewed(values.to(dtype), self.layout, view)

        t = {"x": image(view=self.view, mean=self.mean, std=self.std)}
        if self.residual:
            t["residual"] = image(view=self.view)
        t["weight"] = (normal(c) * 0.5 + 1).to(parameters)
        t["bias"] = (normal(c) * 0.5 + self.shift).to(parameters)
        for i, (outputs, size, stride) in enumerate(self.kernels):
            kernel = normal(outputs, c, size, size) / (c * size * size) ** 0.5
            t[f"kernel{i}"] = viewed(kernel.to(dtype), self.kernel_layout, "dense")
            t[f"dy{i}"] = image(outputs, stride)
        return t | {"ds": image()}


NORM_CONV = [
    NormConvCase("stage1_3x3", (2, 64, 14, 14), ((64, 3, 1),)),
    NormConvCase("stage1_3x3_contiguous", (2, 64, 14, 14), ((64, 3, 1),), layout="contiguous"),
    NormConvCase("stage1_3x3_kernel_contiguous", (2, 64, 14, 14), ((64, 3, 1),), kernel_layout="contiguous"),
    NormConvCase("stage1_widens", (2, 64, 14, 14), ((256, 1, 1),)),
    NormConvCase("stage1_narrows_residual", (2, 256, 14, 14), ((64, 1, 1),), residual=True),
    NormConvCase("stage1_with_projection", (1, 64, 9, 9), ((64, 1, 1), (256, 1, 1))),
    NormConvCase("stage2_with_projection", (1, 256, 14, 14), ((128, 1, 1), (512, 1, 2)), residual=True),
    NormConvCase("stage2_3x3_stride_2", (2, 128, 14, 14), ((128, 3, 2),)),
    NormConvCase("stage4_3x3_7x7", (2, 512, 7, 7), ((512, 3, 1),)),
    NormConvCase("stage4_3x3_4x4", (8, 512, 4, 4), ((512, 3, 1),)),
    NormConvCase("stage4_narrows", (2, 2048, 4, 4), ((512, 1, 1),), residual=True),
    NormConvCase("few_tiles", (1, 64, 7, 7), ((96, 3, 1),)),
    NormConvCase("2x2_images", (9, 64, 2, 2), ((96, 3, 1), (64, 3, 2))),
    NormConvCase("2x2_images_of_many", (70, 32, 2, 2), ((32, 3, 1),), residual=True),
    NormConvCase("2x5_images", (40, 32, 2, 5), ((64, 3, 1), (32, 3, 2))),
    NormConvCase("4x4_images_stride_2", (50, 64, 4, 4), ((64, 3, 2), (32, 1, 2)), residual=True),
    NormConvCase("x3_192", (2, 192, 9, 5), ((192, 3, 1),)),
    NormConvCase("x3_96", (3, 96, 9, 5), ((96, 1, 1), (192, 3, 1)), residual=True),
    NormConvCase("x3_96_contiguous", (3, 96, 9, 5), ((96, 3, 1), (32, 1, 2)), layout="contiguous", residual=True),
    NormConvCase("one_pixel", (9, 64, 1, 1), ((32, 3, 1), (64, 1, 2)), kernel_layout="contiguous"),
    NormConvCase("one_pixel_contiguous", (3, 64, 1, 1), ((32, 3, 2),), layout="contiguous"),
    NormConvCase("one_row", (3, 32, 1, 37), ((64, 3, 1),)),
    NormConvCase("one_column_stride_2", (3, 32, 11, 1), ((64, 3, 2), (32, 1, 2))),
    NormConvCase("5x5_images", (3, 64, 5, 5), ((64, 3, 1), (64, 1, 1))),
    NormConvCase("odd_size", (2, 64, 13, 7), ((64, 3, 2), (96, 1, 2)), residual=True),
    NormConvCase("stride_3", (2, 64, 13, 8), ((64, 3, 3), (32, 1, 3))),
    NormConvCase("stride_past_the_image", (2, 64, 3, 2), ((32, 3, 5), (32, 1, 5))),
    NormConvCase("odd_counts_of_32", (1, 160, 10, 11), ((224, 3, 1), (32, 1, 1))),
    NormConvCase("large_mean", (2, 64, 12, 12), ((64, 3, 1), (64, 1, 1)), mean=1000.0, std=0.01, shift=8.0),
    NormConvCase("empty_batch", (0, 64, 8, 8), ((64, 3, 1), (32, 1, 1))),
    NormConvCase(
        "empty_batch_contiguous", (0, 64, 8, 8), ((64, 3, 2), (128, 1, 1)), layout="contiguous", residual=True
    ),
    NormConvCase("channel_slice", (2, 64, 6, 6), ((64, 3, 1),), view="channel_slice", residual=True),
    NormConvCase("transposed", (2, 64, 6, 5), ((64, 1, 1),), view="transposed", layout="contiguous"),
    NormConvCase("5x5_kernel", (2, 64, 7, 6), ((64, 5, 1), (64, 1, 1))),
    NormConvCase("40_outputs", (2, 64, 7, 6), ((40, 3, 1),), residual=True),
    NormConvCase("40_channels", (2, 40, 7, 6), ((40, 3, 1), (32, 1, 2)), groups=8),
]
