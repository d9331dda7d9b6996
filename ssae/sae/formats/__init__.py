"""On-disk formats of SAEs, one module each.

A module has FILES (the names it reads and writes, weights first), NEEDS (in words), HOLDS (our
architectures it can keep) and

    holds(folder) -> bool               by which files are there and which keys they have
    read(folder) -> Content             checked: every ValueError says rule, finding and remedy
    write(content, folder)              all of FILES that it needs, into an empty folder
"""

from types import ModuleType

from ssae.sae.formats import dictionary_learning, gemma_scope, native, saelens, sparsify

FORMATS: dict[str, ModuleType] = {
    "ssae": native,
    "saelens": saelens,
    "gemma_scope": gemma_scope,
    "dictionary_learning": dictionary_learning,
    "sparsify": sparsify,
}
