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


class OnnxClassifier:
    """An exported file; `predict(image file or path)` -> [(class, probability)], the most probable first."""

    def __init__(self, path):
        self.session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.preprocessing = json.loads(metadata["preprocessing"])
        classes = self.session.get_outputs()[0].shape[1]
        self.classes = json.loads(metadata["label_names"]) or [str(i) for i in range(classes)]

    def prepare(self, file):
        """(1, 3, H, W) float32 of an image file."""
        with Image.open(file) as image:
            image = ImageOps.exif_transpose(image).convert("RGB")
        height, width = self.preprocessing["size"]
        pixels = np.asarray(resized(image, width, height), np.float32)
        values = (pixels - self.preprocessing["mean"]) / self.preprocessing["std"]
        return values.transpose(2, 0, 1)[None].astype(np.float32)

    def predict(self, file, topk=1):
        logits = self.session.run(None, {"images": self.prepare(file)})[0][0]
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = np.argsort(-probabilities, kind="stable")[:topk]
        return [(self.classes[i], float(probabilities[i])) for i in best]


def resized(image, width, height):
    """Resized as in training: bilinear, antialiased, the border pixels repeated where the filter reaches over them."""
    if image.width <= width and image.height <= height:
        return image.resize((width, height), Image.Resampling.BILINEAR)
    wide, high = math.ceil(max(1, image.width / width)), math.ceil(max(1, image.height / height))
    framed = np.pad(np.asarray(image), ((high, high), (wide, wide), (0, 0)), mode="edge")
    box = wide, high, wide + image.width, high + image.height
    return Image.fromarray(framed).resize((width, height), Image.Resampling.BILINEAR, box=box)


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
