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

# Pillow's filter, and how far it reaches in pixels of the smaller image
FILTERS = {
    "nearest": (Image.Resampling.NEAREST, 0),
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
        self.interpolation = self.preprocessing["interpolation"]
        classes = self.session.get_outputs()[0].shape[1]
        self.classes = json.loads(metadata["label_names"]) or [str(i) for i in range(classes)]
        self.probabilities = {"softmax": softmax, "sigmoid": sigmoid}[metadata["probabilities"]]

    def prepare(self, file):
        """(1, 3, H, W) float32 of an image file."""
        with Image.open(file) as image:
            image = on_white(ImageOps.exif_transpose(image))
        height, width = self.preprocessing["size"]
        if self.preprocessing["resize"] == "short_side":
            pixels = resized(image, *with_short_side(image.size, self.preprocessing["short_side"]), self.interpolation)
            top, left = round((pixels.shape[0] - height) / 2), round((pixels.shape[1] - width) / 2)
            pixels = pixels[top : top + height, left : left + width]
        else:
            pixels = resized(image, width, height, self.interpolation)
        values = (pixels.astype(np.float32) - self.preprocessing["mean"]) / self.preprocessing["std"]
        return values.transpose(2, 0, 1)[None].astype(np.float32)

    def predict(self, file, topk=1):
        logits = self.session.run(None, {"images": self.prepare(file)})[0][0]
        probabilities = self.probabilities(logits)
        best = np.argsort(-probabilities, kind="stable")[:topk]
        return [(self.classes[i], float(probabilities[i])) for i in best]


def softmax(logits):
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def on_white(image):
    """RGB, what is transparent laid on white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def with_short_side(size, short):
    """(width, height) whose shorter side is `short`, the aspect kept."""
    long = max(short, int(short * max(size) / min(size)))
    return (short, long) if size[0] < size[1] else (long, short)


def resized(image, width, height, interpolation):
    """uint8 (height, width, 3), resized as in training: antialiased, the border pixels repeated where the filter
    reaches over them; channel by channel as floats, so that nothing is rounded between its two passes."""
    filter, radius = FILTERS[interpolation]
    wide = math.ceil(radius * max(1, image.width / width))
    high = math.ceil(radius * max(1, image.height / height))
    framed = np.pad(np.asarray(image), ((high, high), (wide, wide), (0, 0)), mode="edge")
    where = {"size": (width, height), "resample": filter, "box": (wide, high, wide + image.width, high + image.height)}
    channels = [Image.fromarray(framed[..., c].astype(np.float32)).resize(**where) for c in range(3)]
    return (np.stack(channels, axis=2).clip(0, 255) + 0.5).astype(np.uint8)


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
