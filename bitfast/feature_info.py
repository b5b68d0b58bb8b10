"""Which intermediate features a network has, and which of them are asked for, with timm's names and indices."""

from .errors import UsageError


class FeatureInfo(list):
    """The features of a network in order, each a dict of num_chs, reduction (input pixels per feature pixel), module
    and index; `out_indices` are those that the network returns.

    Where `idx` is None the accessors answer for out_indices, else for that index or those indices of all features.
    """

    def __init__(self, features, out_indices=None):
        super().__init__(features)
        self.out_indices = tuple(range(len(self)) if out_indices is None else out_indices)

    def channels(self, idx=None):
        return self.get("num_chs", idx)

    def reduction(self, idx=None):
        return self.get("reduction", idx)

    def module_name(self, idx=None):
        return self.get("module", idx)

    def get(self, key, idx=None):
        if isinstance(idx, int):
            return self[idx][key]
        return [self[i][key] for i in (self.out_indices if idx is None else idx)]

    def get_dicts(self, keys=None, idx=None):
        entries = [self[idx]] if isinstance(idx, int) else [self[i] for i in (self.out_indices if idx is None else idx)]
        dicts = [{key: entry[key] for key in keys or entry} for entry in entries]
        return dicts[0] if isinstance(idx, int) else dicts


def feature_info(stem_channels, stage_channels):
    """FeatureInfo of a network: the stem's convolution at half the input's size, then each stage."""
    features = [{"num_chs": stem_channels, "reduction": 2, "module": "stem.conv", "index": 0}]
    for i, channels in enumerate(stage_channels):
        features.append({"num_chs": channels, "reduction": 4 * 2**i, "module": f"stages.{i}", "index": i + 1})
    return FeatureInfo(features)


def take_indices(count, indices=None):
    """The features meant by `indices`, ascending: None for all, n for the last n, or a sequence, negative from the end.

    Raises UsageError for one that is not there.
    """
    if indices is None:
        return list(range(count))
    if isinstance(indices, int):
        if not 1 <= indices <= count:
            raise UsageError(
                f"the last {indices} features were asked for: this network has {count}, ask for 1 to {count}"
            )
        return list(range(count - indices, count))
    for index in indices:
        if not -count <= index < count:
            raise UsageError(f"there is no feature {index}: this network has {count}, from 0 to {count - 1}")
    if not len(indices):
        raise UsageError(f"no feature was asked for: give some of 0 to {count - 1}")
    return sorted({index % count for index in indices})
