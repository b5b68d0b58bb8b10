"""Fine-tune on a folder of photos: the plan, the run, the classifier.

    python finetune_folder.py photos/ BiT-M-R50x1
    python finetune_folder.py photos/ resnet26x0_5 --steps 100 --batch-size 64 --crop 128

photos/ holds one sub-folder of images per class. A released name as the model brings its weights, a network's name
trains from scratch. What is not given comes from BiT-HyperRule.
"""

import argparse

import bitfast

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("data")
parser.add_argument("model")
for name in ("--steps", "--batch-size", "--crop"):
    parser.add_argument(name, type=int)
options = vars(parser.parse_args())

print(bitfast.plan(**options))
run = bitfast.finetune(**options)
print(f"top-1 {run.metrics['top1']:.1%} on {run.metrics['images']} held-out photos; report: {run.report}")

classifier = bitfast.load(run.model_folder)
print("classes:", ", ".join(classifier.classes_))
print(f"use it: bitfast predict {run.out} IMAGE...")
