"""A scikit-learn estimator: fit fine-tunes, predict classifies. scikit-learn itself is not needed."""

import inspect
import tempfile
from pathlib import Path

import numpy as np

from .classifier import Classifier
from .errors import DataError, UsageError
from .folder import load_model
from .recipes.finetune import finetune
from .runtime import quiet

_NEVER = 2**62


class BiTClassifier:
    """Fine-tunes a BiT network with BiT-HyperRule; for clone, cross_val_score, GridSearchCV and pipelines.

    model, weights  as bitfast.finetune: a network's name, pretrained weights (None: from scratch)
    val_split       share of each class held out for the run's own evaluation; scikit-learn holds out by itself, so 0
    verbose         0: silent; 1: the banner and the progress of a fine-tune, on stderr
    the others      options of FinetuneConfig; None: by the rule, or by what memory takes

    X is a list or an array of paths, a uint8 array (n, H, W, C) or (n, H, W), or a list of uint8 arrays, PIL images and
    encoded bytes; y (n,) are strings, ints or anything that numpy sorts. Paths are read again in every fit and predict.

    After fit: classes_ (the sorted labels) and classifier_ (a bitfast Classifier: embed, top_k; its own class names are
    the texts of the labels). The run folder of a fit is temporary. A fitted estimator can be pickled.
    The same seed and data give the same network. Raises what bitfast.finetune raises.
    """

    def __init__(
        self,
        model="resnet50x1",
        weights=None,
        *,
        preset="code",
        steps=None,
        batch_size=None,
        lr=None,
        weight_decay=0.0,
        resize=None,
        crop=None,
        mixup=None,
        no_flip=False,
        no_crop=False,
        val_split=0.0,
        bad_images="error",
        seed=0,
        micro_batch=None,
        memory="fast",
        device="auto",
        loader="auto",
        verbose=0,
    ):
        values = locals()
        for name in self._parameters():
            setattr(self, name, values[name])

    @classmethod
    def _parameters(cls):
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep=True):
        """{name: value} of the constructor's arguments."""
        return {name: getattr(self, name) for name in self._parameters()}

    def set_params(self, **params):
        """Set arguments of the constructor; returns self. UsageError, a ValueError, on a name that is none of them."""
        for name, value in params.items():
            if name not in self._parameters():
                raise UsageError(f"BiTClassifier has no parameter {name!r}; there are: {', '.join(self._parameters())}")
            setattr(self, name, value)
        return self

    def fit(self, X, y):
        """Fine-tune on the images X with the labels y; returns self."""
        y = np.asarray(y)
        if y.ndim != 1:
            raise DataError(f"y has shape {y.shape}: give one label per image, (n,)")
        classes = np.unique(y)
        names = [str(label) for label in classes.tolist()]
        options = {name: value for name, value in self.get_params().items() if name != "verbose"}
        with quiet(not self.verbose), tempfile.TemporaryDirectory(prefix="bitfast-fit-") as folder:
            labels = [str(label) for label in y.tolist()]
            run = finetune((X, labels), out=Path(folder) / "run", eval_every=0, save_every=_NEVER, **options)
            self.classifier_ = Classifier(load_model(run.out), device=self.device, engine=self.loader)
        self.classes_ = classes
        self._columns = [self.classifier_.classes_.index(name) for name in names]
        return self

    def predict_proba(self, X):
        """(n, len(classes_)) float32 probabilities, columns as classes_."""
        return self._fitted().predict_proba(X)[:, self._columns]

    def predict(self, X):
        """(n,) labels of y's own type."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    def score(self, X, y, sample_weight=None):
        """Accuracy: the (weighted) share of images whose predicted label is y."""
        return float(np.average(self.predict(X) == np.asarray(y), weights=sample_weight))

    def _fitted(self):
        if not hasattr(self, "classifier_"):
            raise UsageError("this BiTClassifier is not fitted yet: call fit(X, y) first")
        return self.classifier_

    def __sklearn_tags__(self):
        """What scikit-learn (1.6 and later) asks of an estimator."""
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(one_d_array=True, two_d_array=False, string=True),
            no_validation=True,
        )

    def __repr__(self):
        defaults = inspect.signature(type(self).__init__).parameters
        given = [f"{k}={v!r}" for k, v in self.get_params().items() if v != defaults[k].default]
        return f"BiTClassifier({', '.join(given)})"
