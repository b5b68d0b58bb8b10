"""How cost grows with the work, training steps over batch, resolution and width:
python -m benchmarks.models.bench_scaling

Ours against timm in channels_last and the convolutions alone, as in bench_train. `gmacs` of a row are the
multiply-accumulates of one image's forward, in units of 1e9: time over them would be constant if size did not matter.
"""

import argparse
from dataclasses import asdict

import torch

from benchmarks.harness import save
from benchmarks.models.command_line import installed
from benchmarks.models.peers import FLOOR, OURS
from benchmarks.models.rounds import compare, show
from benchmarks.models.setting import Setting
from bitfast.cost import macs

PROVIDERS = ["timm channels_last", OURS, FLOOR]
WORK = ("model", "px", "batch", "gmacs")
AXES = {
    "batch": [Setting("resnet50x1", 64, batch) for batch in (1, 2, 4, 8, 16, 32, 64)],
    "resolution": [Setting("resnet50x1", px, 4) for px in (64, 96, 128, 192, 256, 384)],
    "width": [Setting(model, 64, 4) for model in ("resnet26x0_5", "resnet50x1", "resnet101x1", "resnet50x3")],
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--rounds", type=int, default=3, help="per case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--name", default="scaling_cpu", help="of the file in benchmarks/results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    present, absent = installed(PROVIDERS)
    rows = []
    for axis in options.axes:
        for setting in AXES[axis]:
            measured = compare("training", setting, present, rounds=options.rounds, seconds=1.0)
            show(measured)
            work = asdict(setting) | {"gmacs": round(macs(setting.raw_model(), setting.px).total() / 1e9, 4)}
            rows += [{"axis": axis, **{k: work[k] for k in WORK}, **asdict(row)} for row in measured]
    print(save(options.name, rows, absent=absent))


if __name__ == "__main__":
    main()
