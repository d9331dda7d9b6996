"""What every number and every SAE of the report means, in words."""

SAES = {
    "generalist": "trained on the pool; the starting point of the three others",
    "control": "the generalist, fine-tuned on random pool documents: more training alone",
    "specialist_erm": "the generalist, fine-tuned on the retrieved documents with mean loss (ERM)",
    "specialist": "the generalist, fine-tuned on the retrieved documents with tilted risk (TERM)",
}

METRICS = {
    "fvu": "fraction of variance unexplained: sum ||x - recon||^2 / sum ||x - mean||^2, both sums "
    "over all tokens of the split (or band), divided once. 0 is perfect, 1 is no better than the "
    "mean. Lower is better.",
    "l0": "mean number of latents that are active on a token. A budget, not a score: fvu and "
    "perplexity are comparable at equal l0.",
    "ce_clean": "cross-entropy of the language model's next-token prediction, in nats a token, "
    "without any SAE.",
    "ce_spliced": "the same with the LM activation at the hookpoint replaced by the SAE's recon.",
    "ce_zero": "the same with that activation replaced by zeros.",
    "delta_ce": "ce_spliced - ce_clean, in nats a token. Lower is better.",
    "ce_recovered": "(ce_zero - ce_spliced) / (ce_zero - ce_clean), zero ablation. 1 is perfect. "
    "ce_zero is usually very large, so that values close to 1 can hide large differences: "
    "read perplexity first.",
    "perplexity_clean": "exp(ce_clean).",
    "perplexity_spliced": "exp(ce_spliced). Lower is better; perplexity_clean is the floor.",
    "perplexity_ratio": "perplexity_spliced / perplexity_clean = exp(delta_ce). 1 is no damage.",
    "perplexity_zero": "exp(ce_zero).",
    "fvu_difference": "fvu of one SAE minus that of its reference, on the same documents.",
    "perplexity_spliced_difference": "likewise for perplexity_spliced.",
    "num_silent": "latents that fired on none of the N tokens of the split. Their firing rate is "
    "at most 3/N with 95 % confidence; that is not the same as dead.",
    "num_dead": "silent latents that were also silent over the last dead_after_tokens tokens of "
    "training.",
    "num_rare": "the other silent latents: too rare to tell on this split.",
    "precision": "share of the retrieved documents that belong to the subdomain.",
    "recall": "share of the subdomain's documents in the pool that were retrieved.",
    "average_precision": "mean, over the subdomain's documents, of the precision at the rank of "
    "each: 1 when they all come first.",
    "num_documents": "documents in the selection.",
    "num_tokens": "tokens in the selection.",
}

TERMS = {
    "split": "subdomain_test: held-out documents of the subdomain. general_test: held-out "
    "documents of the general corpus; what gets worse there is the price of specialising.",
    "band": "token types by how often they occur in the pool, in occurrences per million tokens; "
    "the bands are decades. fvu and l0 are banded by the token itself, cross-entropies by the "
    "token that is predicted.",
    "interval": "95 %, percentile bootstrap over documents (tokens of one document are not "
    "independent). Differences between SAEs are bootstrapped in pairs, on the same resamples.",
    "error by rank": "||r||^2 / E||x - mu||^2 for a token, r = x - recon; mean and largest "
    "over the tokens whose type has that rank in the pool.",
    "log ratio": "natural logarithm of the number of tokens of subdomain_test on which the latent "
    "fires in the specialist over that in the generalist (each plus 1/2). The latents shown have "
    "the largest difference in units of its Poisson spread.",
    "decoder cosine": "cosine between the latent's decoder direction before and after fine-tuning.",
    "contexts": "the texts on which the latent is most active. The shade is the activation divided "
    "by the largest one shown for that SAE; the underlined token is the peak.",
}
