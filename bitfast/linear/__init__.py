"""Linear classifiers on features, in float64: ridge regression in closed form, logistic regression by L-BFGS."""
