"""Inference of whole networks against their peers: python -m benchmarks.models.bench_infer [--device cuda]

`timm compile` and the other compiled providers take minutes to start and run only when named by --providers.
"""

from benchmarks.models.command_line import parser, run
from benchmarks.models.setting import Setting

CASES = [Setting("resnet50x1", 128, 32), Setting("resnet50x1", 224, 8), Setting("resnet50x1", 224, 1)]


def main(arguments: list[str] | None = None) -> None:
    run("inference", parser(__doc__, "infer").parse_args(arguments), CASES)


if __name__ == "__main__":
    main()
