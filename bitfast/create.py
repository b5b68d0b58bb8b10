"""Constructors of the named networks: `bitfast.resnet50x1(...)` and `bitfast.create_model(name, ...)`."""

from fnmatch import fnmatch
from functools import partial

from .errors import UsageError
from .features import FeatureNetwork
from .model import ResNetV2
from .numerics import WS_EPS
from .released import canonical
from .timm_config import pretrained_cfg
from .variants import VARIANTS, variant
from .weights import cfg_of, classes_in, default_for, identify, load_weights, released_names, resolve, timm_names


def create_model(
    name,
    pretrained=None,
    *,
    num_classes=None,
    in_chans=3,
    eps=WS_EPS,
    stages=None,
    features_only=False,
    out_indices=None,
    drop_rate=0.0,
    global_pool="avg",
):
    """A BiT network by name, e.g. create_model("resnet50x1", num_classes=10).

    name           one of list_models(): "resnet50x1", or "R50x1"; or a released name or timm's name of one, which also
                   says what pretrained=True and the default num_classes are: "BiT-M-R50x1",
                   "resnetv2_50x1_bit.goog_in21k". Case does not count
    pretrained     None or False: seeded by torch's generator; True: the released weights of that name, BiT-M for a
                   network's; or another released name, a file (.npz, .safetensors, .pth), a model folder, a run, or
                   "hf-hub:OWNER/NAME"
    num_classes    outputs; default those of the pretrained file, else of the released name, else 1000. A number other
                   than the file's gives a zero head. 0 returns pooled features
    in_chans       input channels; RGB weights are adapted as timm does
    eps            weight-standardization epsilon; pretrained weights bring their own (1e-10 official, 1e-8 timm and HF)
    stages         cut the network after this many of its four stages. Its norm has as many channels as the last stage;
                   from whole pretrained weights it gets the norm that the next stage begins with, and a zero head
    features_only  a FeatureNetwork, which returns a list of feature maps: `out_indices` of 0 to 4, all by default
    drop_rate      dropout before the classifier, in training
    global_pool    "avg", or "" for none: maps of logits or features
    Raises         UsageError on an unknown name or a value that cannot be, WeightsError if the weights are missing or
                   do not fit
    """
    network, release = identify(name)
    depths, width = variant(network)
    if stages is not None and stages not in range(1, len(depths) + 1):
        raise UsageError(f"stages is {stages!r}: {network} can be cut after 1 to {len(depths)} of its stages")
    depths = depths[:stages]
    if out_indices is not None and not features_only:
        raise UsageError("out_indices needs features_only=True: without it the network returns logits")
    path = None
    if pretrained:
        source = (release or default_for(network)) if pretrained is True else pretrained
        path, release = resolve(source), canonical(source) or release
    cfg = cfg_of(release, in_chans) if release else pretrained_cfg(1000, in_chans=in_chans)
    if features_only:
        model = FeatureNetwork(depths, width, in_chans, eps, out_indices=out_indices)
    else:
        if num_classes is None:
            num_classes = classes_in(path) if path else cfg["num_classes"]
        model = ResNetV2(depths, width, num_classes, in_chans, eps, drop_rate=drop_rate, global_pool=global_pool)
    model.pretrained_cfg = cfg
    if path:
        load_weights(model, path, adapt=True)
    return model


def list_models(filter="", *, pretrained=False, exclude_filters=()):
    """Names that `create_model` takes, as a list: the networks; or with `pretrained` the released weights, by the names
    of the release and of timm.

    filter, exclude_filters  a pattern with * and ?, or several; case does not count
    """
    names = [*released_names(), *timm_names()] if pretrained else list(VARIANTS)
    wanted, unwanted = _patterns(filter), _patterns(exclude_filters)
    return [name for name in names if (not wanted or _matches(name, wanted)) and not _matches(name, unwanted)]


def _patterns(given):
    return [given] if given and isinstance(given, str) else list(given)


def _matches(name, patterns):
    return any(fnmatch(name.lower(), pattern.lower()) for pattern in patterns)


resnet26x0_5 = partial(create_model, "resnet26x0_5")
resnet50x1 = partial(create_model, "resnet50x1")
resnet101x1 = partial(create_model, "resnet101x1")
resnet50x3 = partial(create_model, "resnet50x3")
resnet101x3 = partial(create_model, "resnet101x3")
resnet152x2 = partial(create_model, "resnet152x2")
resnet152x4 = partial(create_model, "resnet152x4")
resnet50x1_distilled = partial(create_model, "distill/R50x1_224")
resnet152x2_teacher = partial(create_model, "distill/R152x2_T_224")
resnet152x2_teacher_384 = partial(create_model, "distill/R152x2_T_384")
