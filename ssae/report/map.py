"""Texts in a plane: whose words are alike lie together, whatever the retriever thinks of them."""

import re
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.manifold import TSNE
from sklearn.preprocessing import normalize
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

FIRST_CHARACTERS = 4000  # of a text: enough for its topic, and a text of 1 MB costs no more
DIM = 50
PERPLEXITY = 30.0
SEED = 0
# 950 texts take 2 s of one core. 1,000 iterations took twice as long and put no more nearest
# neighbours of one source side by side (0.80 of 1,100 pool documents); nor did an angle of 0.5.
NUM_ITERATIONS, ANGLE = 500, 0.8

# Scripts that put no space between words, and Korean, whose words carry their particles: Thai, Lao,
# Burmese, Khmer, kana, Han, Hangul. Pairs of characters take the place of words there.
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[^\W{_SPACELESS}]{{2,}}")
_PAIR = re.compile(rf"(?=([{_SPACELESS}]{{2}}))")


def words(text: str) -> list[str]:
    """Return what is counted of a text in any language: words, pairs of characters, or characters.

    >>> words("Black holes, A*"), words("x = 1")
    (['black', 'holes'], ['x', '=', '1'])
    """
    text = text[:FIRST_CHARACTERS].lower()
    found = _WORD.findall(text)
    if not text.isascii():
        found += _PAIR.findall(text)
    return found or [character for character in text if not character.isspace()]


def plane(texts: Sequence[str]) -> np.ndarray:
    """Return t-SNE of the texts' leading TF-IDF directions, fitted on nothing but these texts.

    The same texts give the same plane. Only what is near means something: neither the distance
    between far groups nor their size does (van der Maaten and Hinton 2008).

    Args:
        texts: n of them; empty ones, duplicates and texts without a word are allowed.

    Returns:
        (n, 2) float32; all zero where there is nothing to tell the texts apart.
    """
    # One thread: two made the SVD slower on a busy machine, and the sums of t-SNE would depend on
    # the order in which threads finish.
    with threadpool_limits(1):
        vectors = _vectors(texts)
        if len(texts) < 3 or np.ptp(vectors, axis=0).max() < 1e-6:
            return np.zeros((len(texts), 2), np.float32)
        tsne = TSNE(
            init="pca",
            perplexity=max(1.0, min(PERPLEXITY, (len(texts) - 1) / 3)),
            max_iter=NUM_ITERATIONS,
            angle=ANGLE,
            random_state=SEED,
        )
        return tsne.fit_transform(vectors)


def _vectors(texts: Sequence[str]) -> np.ndarray:
    """Return (n, at most DIM, at least 2) float32, rows of unit length or zero."""
    counted = [words(text) for text in texts]
    if not any(counted):
        return np.zeros((len(texts), 2), np.float32)
    tfidf = TfidfVectorizer(
        analyzer=list,  # pyright: ignore[reportArgumentType] - the words, counted already
        sublinear_tf=True,
        dtype=np.float32,  # pyright: ignore[reportArgumentType]
    ).fit_transform(counted)
    dim = min(DIM, *tfidf.shape)
    left, values, _ = randomized_svd(tfidf, dim, random_state=SEED)
    vectors = np.asarray(normalize(left * values))
    return np.pad(vectors, ((0, 0), (0, max(0, 2 - dim))))
