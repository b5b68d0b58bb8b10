"""Moving averages of weights: the decay of one step. Pure, no torch."""


def decay(step, limit):
    """What the average keeps of itself in optimizer step `step` (0-based): min(limit, (1 + step) / (10 + step)).

    It approaches the limit from 1/10, so that short runs are averaged over their last steps too, about a tenth of them,
    and the initial weights are soon forgotten.

    Source: ExponentialMovingAverage with num_updates in TensorFlow 1
    """
    return min(limit, (1 + step) / (10 + step))
