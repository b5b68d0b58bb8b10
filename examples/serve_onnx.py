"""Classify photos with a file of `bitfast export RUN --format onnx`; needs onnxruntime and Pillow, no torch.

    python serve_onnx.py model.onnx photo.jpg ...          one line per photo: path, class, probability
    python serve_onnx.py model.onnx --port 8000            then: curl --data-binary @photo.jpg localhost:8000

Classes and preprocessing are read from the file's metadata.
"""

import argparse
import io
import json
import math
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

# the filter of Pillow, and how far it reaches in pixels of the smaller image
FILTERS = {
    "bilinear": (Image.Resampling.BILINEAR, 1),
    "bicubic": (Image.Resampling.BICUBIC, 2),
    "lanczos": (Image.Resampling.LANCZOS, 3),
}


class OnnxClassifier:
    """An exported file; `predict(image file or path)` -> [(class, probability)], the most probable first."""

    def __init__(self, path):
        self.session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.preprocessing = json.loads(metadata["preprocessing"])
        self.multilabel = metadata["probabilities"] == "sigmoid"
        self.temperature = float(metadata["temperature"])
        classes = self.session.get_outputs()[0].shape[1]
        self.classes = json.loads(metadata["label_names"]) or [str(i) for i in range(classes)]

    def prepare(self, file):
        """(1, 3, H, W) float32 of an image file."""
        spec = self.preprocessing
        with Image.open(file) as image:
            pixels = resized(upright_rgb(image), spec)
        return ((pixels - spec["mean"]) / spec["std"]).astype(np.float32).transpose(2, 0, 1)[None]

    def predict(self, file, topk=1):
        logits = self.session.run(None, {"images": self.prepare(file)})[0][0] / self.temperature
        if self.multilabel:
            probabilities = 1 / (1 + np.exp(-logits))
        else:
            probabilities = np.exp(logits - logits.max())
            probabilities /= probabilities.sum()
        best = np.argsort(-probabilities, kind="stable")[:topk]
        return [(self.classes[i], float(probabilities[i])) for i in best]


def upright_rgb(image):
    """RGB as people see the photo: turned by its EXIF, transparent parts white, 16 bits scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray(((np.asarray(image).astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def resized(image, spec):
    """(crop, crop, 3) float32 of whole levels: resized as for training, antialiased, the border repeated where the
    filter reaches over it, and rounded once."""
    crop, edge = spec["crop"], spec["resize"]
    width = height = edge
    if spec["geometry"] == "short_side":
        other = max(edge, int(edge * max(image.size) / min(image.size)))
        width, height = (edge, other) if image.height > image.width else (other, edge)
    top, left = round((height - crop) / 2), round((width - crop) / 2)
    window = slice(top, top + crop), slice(left, left + crop)
    pixels = np.asarray(image, np.float32)
    if spec["interpolation"] == "nearest":
        rows, columns = (nearest(old, new) for old, new in ((image.height, height), (image.width, width)))
        return pixels[rows[window[0]]][:, columns[window[1]]]
    resample, radius = FILTERS[spec["interpolation"]]
    wide, high = math.ceil(radius * max(1, image.width / width)), math.ceil(radius * max(1, image.height / height))
    framed = np.pad(pixels, ((high, high), (wide, wide), (0, 0)), mode="edge")
    box = wide, high, wide + image.width, high + image.height
    planes = [Image.fromarray(framed[:, :, c]).resize((width, height), resample, box=box) for c in range(3)]
    return np.floor(np.stack(planes, axis=2)[window].clip(0, 255) + 0.5)


def nearest(old, new):
    """Which of `old` pixels each of `new` ones shows."""
    return ((np.arange(new) + 0.5) * (old / new)).astype(np.int64).clip(0, old - 1)


def server(classifier, port, topk=5):
    """An HTTP server: POST an image, get a JSON list of [class, probability]; 400 for what is no image."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                status, answer = 200, classifier.predict(io.BytesIO(body), topk)
            except OSError as error:
                status, answer = 400, {"error": str(error)}
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer, ensure_ascii=False).encode())

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images", nargs="*")
    parser.add_argument("--topk", type=int, default=1)
    parser.add_argument("--port", type=int, help="serve on this port of localhost")
    options = parser.parse_args()
    if bool(options.images) == (options.port is not None):
        parser.error("give images to classify, or --port to serve")
    classifier = OnnxClassifier(options.model)
    if options.port is not None:
        print(f"serving on http://127.0.0.1:{options.port}, Ctrl-C stops it")
        server(classifier, options.port).serve_forever()
    for path in options.images:
        print(path, *(f"{name} {probability:.4f}" for name, probability in classifier.predict(path, options.topk)))


if __name__ == "__main__":
    main()
