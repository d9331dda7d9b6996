"""Is a dictionary optimal? Statements about local optima of L1 dictionaries, without a data model.

codes         optimal_codes, amortisation_gap         what the encoder loses
violations    stationarity                            whether directions could turn
pairs         pair_identity                           cosines that residuals imply
residual      residual_structure                      what is left of x, and why
antipodal     antipodal_pairs                         signed directions held as two latents
cone          cone_condition                          codes that no L1 dictionary keeps
absorption    predict_absorption                      the same for labelled concepts
splits        splitting                               latents of SAEs of growing width
convex        solve_large_dictionary                  the best directions among many, certified
coarsening    coarsening_path, merge_tree             how they merge
gap           wide_limit, optimality_gap              all on one scale
penalty       penalty_of, lam_of_l0                   the price of a unit of z
polishing     polish_sae                              a trained SAE, a little closer to an optimum
toy           tokens whose concepts are known; limits, demonstration: what L1 SAEs make of them

Sources: arXiv 2606.02385; Gribonval & Schnass 2010 (0904.4774). Statements are computed in float64,
whatever x and the SAE are in; x, z and W_dec are tensors of one device.
"""

from ssae.theory import toy
from ssae.theory.absorption import Prediction, predict_absorption
from ssae.theory.antipodal import AntipodalPair, antipodal_pairs
from ssae.theory.coarsening import Merge, coarsening_path, merge_tree
from ssae.theory.coded import Coded, coded, coded_by
from ssae.theory.codes import AmortisationGap, Codes, amortisation_gap, optimal_codes
from ssae.theory.cone import Cone, cone_condition
from ssae.theory.convex import LargeDictionary, candidates_of, solve_large_dictionary
from ssae.theory.gap import OptimalityGap, Scale, WideLimit, optimality_gap, wide_limit
from ssae.theory.pairs import PairIdentity, pair_identity
from ssae.theory.penalty import Penalty, lam_of_l0, penalty_of
from ssae.theory.polishing import Polished, polish_sae
from ssae.theory.residual import ResidualStructure, residual_structure
from ssae.theory.splits import Child, Family, splitting
from ssae.theory.violations import Stationarity, stationarity

__all__ = [
    "AmortisationGap",
    "AntipodalPair",
    "Child",
    "Coded",
    "Codes",
    "Cone",
    "Family",
    "LargeDictionary",
    "Merge",
    "OptimalityGap",
    "PairIdentity",
    "Penalty",
    "Polished",
    "Prediction",
    "ResidualStructure",
    "Scale",
    "Stationarity",
    "WideLimit",
    "amortisation_gap",
    "antipodal_pairs",
    "candidates_of",
    "coarsening_path",
    "coded",
    "coded_by",
    "cone_condition",
    "lam_of_l0",
    "merge_tree",
    "optimal_codes",
    "optimality_gap",
    "pair_identity",
    "penalty_of",
    "polish_sae",
    "predict_absorption",
    "residual_structure",
    "solve_large_dictionary",
    "splitting",
    "stationarity",
    "toy",
    "wide_limit",
]
