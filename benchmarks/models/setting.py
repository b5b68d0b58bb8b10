"""What is timed: a network, images and labels that are the same for every provider."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import bitfast
from bitfast.variants import variant

CLASSES = 1000


@dataclass(frozen=True)
class Setting:
    """A case of a benchmark. `dtype`: of activations and convolution weights; `device`: "cpu" or "cuda"."""

    model: str
    px: int
    batch: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.model} {self.px} px b{self.batch} {str(self.dtype).removeprefix('torch.')}"

    @property
    def shape(self) -> tuple[tuple[int, ...], float]:
        """Depths and width."""
        return variant(self.model)

    def raw_model(self) -> bitfast.ResNetV2:
        """Our unfolded network in fp32, on the CPU; norms and head not as they begin, so that all of it shows."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = bitfast.create_model(self.model, num_classes=CLASSES)
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.2)
            nn.init.normal_(model.head.fc.weight, std=0.05)
        return model

    def images(self, layout: torch.memory_format) -> Tensor:
        """(batch, 3, px, px), uniform in [-1, 1]."""
        generator = torch.Generator().manual_seed(1)
        images = torch.rand(self.batch, 3, self.px, self.px, generator=generator) * 2 - 1
        return images.to(self.device, self.dtype, memory_format=layout)

    def labels(self) -> Tensor:
        return torch.randint(CLASSES, (self.batch,), generator=torch.Generator().manual_seed(2)).to(self.device)
