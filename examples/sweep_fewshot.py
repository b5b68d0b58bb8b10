"""How many photos per class are enough? Fine-tune on a few of each class, several draws each, and print a table.

    python sweep_fewshot.py photos/ BiT-M-R50x1 --shots 1 5 10 --seeds 3 --out runs/fewshot

The held-out photos are the same in all runs. Runs that are finished already are not done again, one that was
interrupted is continued, so the same command can be repeated until the table is whole.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev

import bitfast


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="folder with one sub-folder of images per class, or anything bitfast takes")
    parser.add_argument("model", help="a network, trained from scratch, or released weights such as BiT-M-R50x1")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5, 10], help="photos per class")
    parser.add_argument("--seeds", type=int, default=3, help="draws for each number of shots")
    parser.add_argument("--steps", type=int, help="default HyperRule's 500")
    parser.add_argument("--batch-size", type=int, help="default HyperRule's 512")
    parser.add_argument("--crop", type=int, help="side of the images in pixels, default HyperRule's")
    parser.add_argument("--out", default="runs/fewshot", help="folder for the runs")
    args = parser.parse_args()

    given = {name: getattr(args, name) for name in ("steps", "batch_size", "crop")}
    rows = []
    for shots in args.shots:
        accuracies = []
        for seed in range(args.seeds):
            run = bitfast.finetune(
                args.data,
                model=args.model,
                out=Path(args.out) / f"{shots}-shot-{seed}",
                resume=True,
                examples_per_class=shots,
                examples_per_class_seed=seed,
                **given,
            )
            accuracies.append(run.metrics["top1"])
        rows.append((shots, accuracies))

    print("shots  top-1   spread  runs")
    for shots, accuracies in rows:
        spread = stdev(accuracies) if len(accuracies) > 1 else 0.0
        print(f"{shots:>5}  {mean(accuracies):>5.1%}  {spread:>6.1%}  {len(accuracies):>4}")


if __name__ == "__main__":
    main()
