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
    "tail_recall": "share of the tail types that are represented. Higher is better.",
    "tail_recall_difference": "tail_recall of one SAE minus that of its reference, on the same "
    "documents.",
    "tail_recall_ratio": "tail_recall of one SAE over that of its reference.",
    "tail_error": "mean over the tail types of the mean of ||r||^2 / E||x - mu||^2 over their "
    "tokens: a type counts the same whether it is frequent or not. Lower is better.",
    "tail_error_difference": "tail_error of one SAE minus that of its reference.",
    "tail_error_ratio": "tail_error of one SAE over that of its reference.",
    "delta_ce_current": "delta_ce, in bands of the token that the SAE sees instead of the token "
    "that is predicted.",
    "fvu_predicted": "fvu, in bands of the token that is predicted from the activation.",
    "l0_predicted": "l0, likewise.",
    "forgetting": "fvu on general_test over that of the SAE it was fine-tuned from, minus 1. Lower "
    "is better; below 0 nothing was forgotten.",
    "concept_recall": "share of the labelled concepts whose best latent tells their documents from "
    "the others with an AUROC of at least 0.9 on held-out documents. Higher is better.",
    "concept_auroc": "mean of that AUROC over the concepts: the latent is chosen on one half of "
    "the documents and scored on the other. 0.5 is chance, 1 perfect.",
    "concept_f1": "mean over the concepts of the F1 of the best latent, chosen by F1, likewise.",
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
    "tail types": "the rarest token types of the pool that make up at most half of the tokens of "
    "the split, of which those that occur in it at least 5 times count.",
    "represented": "a token type for which some latent, taken to fire when it exceeds half of its "
    "99.9 % activation, finds the type's tokens with F1 of at least 0.5.",
    "effective number of types": "exp(H_j), H_j = -sum_v p_j(v) log p_j(v) in nats, p_j(v) the "
    "share of latent j's summed activation that lies on tokens of type v. 1: a single type. It "
    "needs no other model to judge how diverse the texts of a latent are.",
    "normalised activation count": "tokens on which the latent fires (plus 1/2) over the sum of "
    "these over all latents: SAEs of another l0 compare.",
    "log ratio": "natural logarithm of the number of tokens of subdomain_test on which the latent "
    "fires in the specialist over that in the generalist (each plus 1/2). The latents shown have "
    "the largest difference in units of its Poisson spread.",
    "decoder cosine": "cosine between the latent's decoder direction before and after fine-tuning.",
    "contexts": "the texts on which the latent is most active. The shade is the activation divided "
    "by the largest one shown for that SAE; the underlined token is the peak.",
}
