"""Pooled features after each stage, of every image of a split, kept on disk: forward once, use often."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from .data import decode
from .data.loader import chosen_engine, images, in_order, usable_cores
from .errors import BadImages, DataError, OutOfMemory
from .features import pooled_stages
from .files import cache_folder, replacing
from .folding import fold
from .progress import live
from .runtime import available_memory_bytes, compute_dtype, say

BATCH = 32
# Images of a file: what a kill costs at most, and what a change of one image makes anew.
PART = 512
# Part of every key: another meaning of what is kept is another file.
_VERSION = 1


class StageFeatures:
    """Makes and keeps the features of one network and one transform.

    model      a raw ResNetV2; its head is not used
    transform  test Transform of the images

    Files are in files.cache_folder()/features, named by a digest of weights, epsilon, transform, device, dtype and the
    content of the images: whatever changes gives another name, so none is ever out of date. All may be deleted.
    """

    def __init__(self, model, transform, *, device, engine="auto"):
        self.transform, self.device, self.engine = transform, device, chosen_engine(engine)
        self.channels = [stage.blocks[-1].conv3.out_channels for stage in model.stages]
        self._dtype = compute_dtype(device)
        self._key = self._digest(model)
        self._network = fold(model.to(device).eval(), self._dtype)

    def of(self, split, stages, *, on_bad=None, what="images"):
        """(features, positions, contents) of a split's images.

        features   {stage, from 1 on: (n, C) float32} of the `stages` asked for
        positions  (n,) of those images in the split: all but those that cannot be read
        contents   n digests, equal for images of equal content
        on_bad     called with {position: reason} of images that cannot be read, which are then left out; raises to
                   stop. None stops with the BadImages error

        Raises:  DataError if no image is left, OutOfMemory if the features do not fit into what is free
        """
        self._require_memory(len(split), stages)
        positions = np.arange(len(split))
        while True:
            try:
                contents = _contents(split, positions)
                parts = list(self._parts(split.take(positions), contents, stages, what))
                break
            except BadImages as error:
                found = {int(positions[i]): why for i, why in error.found.items()}
                if on_bad is None:
                    raise
                on_bad(found)
                positions = np.setdiff1d(positions, list(found))
        return {stage: np.concatenate([part[stage] for part in parts]) for stage in stages}, positions, contents

    def _parts(self, split, contents, stages, what):
        """Yield {stage: features} of PART images each, from the cache or made and kept."""
        if not len(split):
            raise DataError(f"none of the {what} can be read: make them readable again")
        folder = cache_folder() / "features"
        starts = range(0, len(split), PART)
        paths = [folder / f"{_key(self._key, contents[start : start + PART])}.safetensors" for start in starts]
        known = sum(path.is_file() for path in paths)
        say(
            f"features: {len(split):,} {what}"
            + (f", {'all' if known == len(paths) else 'some'} of them from {folder}" if known else "")
        )
        with live(len(split), "features of", "images") as show:
            for start, path in zip(starts, paths, strict=True):
                chosen = np.arange(start, min(start + PART, len(split)))
                part = self._recalled(path, len(chosen))
                if part is None:
                    try:
                        part = self._made(split.take(chosen), lambda done, start=start: show(start + done))
                    except BadImages as error:
                        raise BadImages(str(error), {start + i: why for i, why in error.found.items()}) from error
                    if _contents(split, chosen) == contents[start : start + PART]:  # not changed meanwhile
                        _keep(path, part)
                yield {stage: part[stage - 1] for stage in stages}

    @torch.inference_mode()
    def _made(self, split, show):
        found, done = [], 0
        requests = in_order(len(split), BATCH)
        options = {"engine": self.engine, "device": self.device, "dtype": self._dtype}
        for batch in images(split, self.transform, requests, **options):
            found.append([feature.float().cpu().numpy() for feature in pooled_stages(self._network, batch)])
            done += len(batch)
            show(done)
        return [np.concatenate(of_stage) for of_stage in zip(*found, strict=True)]

    def _recalled(self, path, count):
        """The features of a file, a list by stage; None where there is none, or not these."""
        if not path.is_file():
            return None
        try:
            kept = load_file(path)
            part = [kept[f"stage{i}"] for i in range(1, len(self.channels) + 1)]
        except (SafetensorError, OSError, KeyError) as error:
            say(f"features {path} are damaged ({error!r}): made anew")
            return None
        return part if [x.shape for x in part] == [(count, channels) for channels in self.channels] else None

    def _require_memory(self, count, stages):
        """The features, and in float64 what standardizes and solves."""
        needed = count * sum(self.channels[stage - 1] for stage in stages) * (4 + 3 * 8)
        free = available_memory_bytes(torch.device("cpu"))
        if needed > free:
            raise OutOfMemory(
                f"the features of {count:,} images need {needed / 2**30:.1f} GB, {free / 2**30:.1f} GB are free:"
                " use --tune all, or fewer images with --examples-per-class"
            )

    def _digest(self, model):
        digest = hashlib.blake2b(digest_size=16)
        facts = [_VERSION, model.ws_eps, self.transform.to_dict(), self.engine, self.device.type, str(self._dtype)]
        digest.update(json.dumps(facts).encode())
        for name, tensor in model.state_dict().items():
            if not name.startswith("head."):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().numpy())
        return digest.digest()


def _contents(split, positions):
    """Digest of what each image is made of. BadImages with all that cannot be read."""

    def look(i):
        try:
            return _content(decode.read(split.images, i)), None
        except decode.Unreadable as error:
            return b"", str(error)

    with ThreadPoolExecutor(usable_cores()) as pool:
        looks = list(pool.map(look, positions))
    bad = {row: why for row, (_, why) in enumerate(looks) if why}
    if bad:
        raise decode.unreadable(split.take(positions).images, bad)
    return [digest for digest, _ in looks]


def _content(content):
    shape = b"" if isinstance(content, bytes) else repr(content.shape).encode()
    return hashlib.blake2b(shape + memoryview(content).tobytes(), digest_size=16).digest()


def _key(network, contents):
    return hashlib.blake2b(network + b"".join(contents), digest_size=16).hexdigest()


def _keep(path, part):
    """Save the features of a part; where that cannot be, say so and go on."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file({f"stage{i}": np.ascontiguousarray(x) for i, x in enumerate(part, 1)}, temporary)
    except (OSError, SafetensorError) as error:
        say(f"features: not kept in {path.parent} ({error})")
