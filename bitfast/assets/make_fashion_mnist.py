"""Make fashion-mnist-t10k.xz beside this file from Debian's package dataset-fashion-mnist.

    apt-get install dataset-fashion-mnist && python bitfast/assets/make_fashion_mnist.py

Content, xz-compressed: 10,000 bytes of labels (0-9), then 10,000 images of 28 x 28 bytes, row by row.
"""

import gzip
import lzma
from pathlib import Path

SOURCE = Path("/usr/share/datasets/fashion-mnist")
LABELS_HEADER, IMAGES_HEADER = 8, 16


def main():
    labels = gzip.decompress((SOURCE / "t10k-labels-idx1-ubyte.gz").read_bytes())[LABELS_HEADER:]
    images = gzip.decompress((SOURCE / "t10k-images-idx3-ubyte.gz").read_bytes())[IMAGES_HEADER:]
    if len(labels) != 10_000 or len(images) != 10_000 * 28 * 28:
        raise SystemExit(f"expected 10,000 labels and images of 784 bytes, got {len(labels)} and {len(images)} bytes")
    target = Path(__file__).with_name("fashion-mnist-t10k.xz")
    target.write_bytes(lzma.compress(labels + images, preset=9))
    print(f"{target.name}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
