"""Seeds and tests of a corpus, which are read whole: from text of their own, or held out."""

from collections.abc import Iterable, Mapping

from ssae.corpus.base import SPLITS, TESTS, Corpus, fingerprint, share_of_hash
from ssae.corpus.part import Document

Split = dict[str, Document]
"""{fingerprint: document}."""


def own_splits(corpus: Corpus) -> dict[str, Split]:
    """Return {name: split} of those that have text of their own.

    Raises:
        ValueError: one is empty, or a seed is also in a test.
    """
    found: dict[str, Split] = {}
    for name, documents in corpus.own_documents().items():
        own = found[name] = {}
        for document in documents:
            if len(document["text"]) >= corpus.min_characters:
                own.setdefault(fingerprint(document["text"]), document)
    _check(found, corpus)
    return found


def small_splits(
    own: Mapping[str, Split], held_out: Iterable[tuple[str, Document]], corpus: Corpus
) -> dict[str, list[Document]]:
    """Return seeds and tests, each document once.

    Args:
        own: as `own_splits` gives them.
        held_out: (name of the split, document) of the pool's text.
        corpus: theirs.

    Raises:
        ValueError: one is empty, or a seed is also in a test.
    """
    taken = {key for documents in own.values() for key in documents}
    found = {name: dict(own.get(name, {})) for name in SPLITS[1:]}
    for split, document in held_out:
        key = fingerprint(document["text"])
        if key not in taken:  # a document of a file's own is held back from the pool already
            found[split].setdefault(key, document)
    _check(found, corpus)
    splits = {name: list(documents.values()) for name, documents in found.items()}
    for name in TESTS:
        # By hash, so that the first documents of a test split are a fair sample of it.
        splits[name].sort(key=lambda document: share_of_hash(document["text"]))
    return splits


def _check(found: Mapping[str, Split], corpus: Corpus) -> None:
    for name, documents in found.items():
        if not documents:
            raise no_document(name, corpus)
    for name in found.keys() & set(TESTS):
        shared = found.get("seeds", {}).keys() & found[name].keys()
        if shared:
            first = found["seeds"][min(shared)]["text"]
            raise ValueError(
                f"{len(shared)} seeds are also in {name} (first: {first[:60]!r}); a test on its "
                f"own seeds measures nothing: remove them from corpus.seeds or from corpus.{name}"
            )


def no_document(split: str, corpus: Corpus) -> ValueError:
    """Return the error of a split that is empty."""
    longest = corpus.max_characters
    limit = "" if split != "pool" or longest is None else f" and at most {longest}"
    return ValueError(
        f"corpus split {split!r} has no document of at least {corpus.min_characters}{limit} "
        f"characters; check corpus.{split} or lower corpus.min_characters"
    )
