"""The file formats: how each is written, and how its file is run again for the check."""

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

from ..errors import UsageError

OPSET = 21  # the first whose GroupNormalization has a weight per channel, as torch's
PROTOBUF_BYTES = 2**31 - 2**26  # a message is limited to 2 GiB; above, the weights go into a file beside
_DYNAMIC = (0, "batch"), (2, "height"), (3, "width")


class Format(NamedTuple):
    """`write(plain, file, metadata, images)`; `open(file, plain)` -> images -> logits.

    smallest  side in pixels of the images that the file takes
    needs     packages of the extra "onnx"
    """

    file: str
    write: Callable
    open: Callable
    smallest: int = 1
    needs: tuple[str, ...] = ()

    def require(self):
        """Raise UsageError if a package is missing."""
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if missing:
            raise UsageError(f"this export needs {', '.join(missing)}: pip install 'bitfast[onnx]'")


def _write_safetensors(plain, file, metadata, images):
    save_file(plain.state_dict(), file, metadata={"format": "pt", "folded": "true", **metadata})


def _open_safetensors(file, plain):
    tensors = load_file(file)
    return lambda images: torch.func.functional_call(plain, tensors, (images,), strict=True)


def _write_pt2(plain, file, metadata, images):
    # torch.export tells sides of one pixel from longer ones, and the last stage of 32 pixels has one.
    dynamic = {dim: torch.export.Dim.DYNAMIC for dim, _ in _DYNAMIC}
    with _quiet():
        program = torch.export.export(plain, (images,), dynamic_shapes={"images": dynamic})
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata, ensure_ascii=False)})


def _open_pt2(file, plain):
    with _quiet():
        return torch.export.load(file).module()


def _write_onnx(plain, file, metadata, images):
    names = {"input_names": ["images"], "output_names": ["logits" if list(plain.head.parameters()) else "features"]}
    with _quiet():
        program = torch.onnx.export(
            plain,
            (images,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes={"images": dict(_DYNAMIC)},
            verbose=False,
            **names,
        )
        program.model.metadata_props.update(metadata)
        for node in program.model.graph:
            node.metadata_props.clear()  # where each was made: paths of this machine
        weight_bytes = sum(p.numel() * p.element_size() for p in plain.parameters())
        program.save(file, external_data=weight_bytes > PROTOBUF_BYTES)


def _open_onnx(file, plain):
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@contextmanager
def _quiet():
    """The exporters warn of their own inner workings: nothing a user could act on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


FORMATS = {
    "safetensors": Format("model.safetensors", _write_safetensors, _open_safetensors),
    "onnx": Format("model.onnx", _write_onnx, _open_onnx, needs=("onnx", "onnxscript", "onnxruntime")),
    "pt2": Format("model.pt2", _write_pt2, _open_pt2, smallest=33),
}
