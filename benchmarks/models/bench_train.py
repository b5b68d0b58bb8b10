"""Training steps of whole networks against their peers: python -m benchmarks.models.bench_train [--device cuda]

A step is zero_grad, forward, cross-entropy, backward and SGD with momentum on one batch. With --memory: the memory it
takes instead of its time. Compiled providers take minutes to start; these and
memory=save, which is made for --memory, run only when named by --providers.
"""

from benchmarks.models import peak_memory
from benchmarks.models.command_line import parser, run
from benchmarks.models.setting import Setting
from bitfast.errors import UsageError

CASES = [Setting("resnet50x1", 128, 32), Setting("resnet50x1", 224, 8), Setting("resnet26x0_5", 64, 64)]


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__, "train")
    options.add_argument("--memory", action="store_true", help="peak memory of each provider, in a process of its own")
    options = options.parse_args(arguments)
    if options.memory and options.device != "cpu":
        raise UsageError("--memory reads what a process has of the host's memory: it needs --device cpu")
    (peak_memory.run if options.memory else run)("training", options, CASES)


if __name__ == "__main__":
    main()
