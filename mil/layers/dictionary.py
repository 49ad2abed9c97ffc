"""A dictionary of normal videos by sparse coding, as S3R (Wu et al., ECCV 2022) learns its own."""

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import MiniBatchDictionaryLearning

_STEPS = 100  # mini-batches in all
_BATCH = 32
_SEED = 42


def sparse_codes(videos: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Mean features of normal videos (V, D) -> dictionary (round(share * V), D), at least one row.

    The features are the samples and the videos their dimensions: online dictionary learning finds directions in the
    space of videos, and each feature is coded by at most two of them (orthogonal matching pursuit). The rows that come
    back are these codes, so a column has at most two entries that are not 0.

    The learner sees 100 mini-batches of 32 features, as the authors' version of scikit-learn counted iterations; later
    versions count passes instead.
    """
    samples = np.ascontiguousarray(videos.T)  # (D, V)
    rows = max(int(np.around(len(videos) * share)), 1)
    rng = np.random.RandomState(_SEED)
    learner = MiniBatchDictionaryLearning(
        rows,
        batch_size=_BATCH,
        transform_algorithm="omp",
        transform_n_nonzero_coefs=min(2, rows),
        dict_init=_start(samples, rows),
        random_state=rng,
    )
    order = rng.permutation(len(samples))
    batches = [order[i : i + _BATCH] for i in range(0, len(order), _BATCH)]
    with warnings.catch_warnings():
        # few or alike videos: a pursuit that ends with one entry, or a path that stops early, is as good as it gets
        warnings.simplefilter("ignore")
        for step in range(_STEPS):
            learner.partial_fit(samples[batches[step % len(batches)]])
        codes: NDArray[np.float64] = learner.transform(samples)
    return np.ascontiguousarray(codes.T)


def _start(samples: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """The first right singular vectors, each as long as its singular value, then zeros; (rows, V)."""
    _, lengths, directions = np.linalg.svd(samples, full_matrices=False)
    count = min(rows, len(lengths))
    start = np.zeros((rows, samples.shape[1]))
    start[:count] = lengths[:count, None] * directions[:count]
    return start
