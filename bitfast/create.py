"""Constructors of the named networks: `bitfast.resnet50x1(...)` and `bitfast.create_model(name, ...)`."""

from functools import partial

from .model import ResNetV2
from .numerics import WS_EPS
from .variants import variant
from .weights import classes_in, default_for, load_weights, resolve


def create_model(name, *, pretrained=None, num_classes=None, in_chans=3, eps=WS_EPS):
    """A BiT network by name, e.g. create_model("resnet50x1", num_classes=10).

    name         a key of bitfast.variants.VARIANTS
    pretrained   None or False: seeded by torch's generator; True: the network's BiT-M weights; or a released name
                 ("BiT-M-R50x1"), a file (.npz, .safetensors, .pth), a model folder or a run
    num_classes  outputs; default those of the pretrained file, else 1000. A number other than the file's gives a zero
                 head. 0 returns pooled features
    in_chans     input channels
    eps          weight-standardization epsilon; pretrained weights bring their own (1e-10 official, 1e-8 timm and HF)
    Raises       UsageError on an unknown name, WeightsError if the weights are missing or do not fit
    """
    depths, width = variant(name)
    if not pretrained:
        return ResNetV2(depths, width, 1000 if num_classes is None else num_classes, in_chans, eps)
    path = resolve(default_for(name) if pretrained is True else pretrained)
    model = ResNetV2(depths, width, classes_in(path) if num_classes is None else num_classes, in_chans, eps)
    load_weights(model, path)
    return model


resnet26x0_5 = partial(create_model, "resnet26x0_5")
resnet50x1 = partial(create_model, "resnet50x1")
resnet101x1 = partial(create_model, "resnet101x1")
resnet50x3 = partial(create_model, "resnet50x3")
resnet101x3 = partial(create_model, "resnet101x3")
resnet152x2 = partial(create_model, "resnet152x2")
resnet152x4 = partial(create_model, "resnet152x4")
