"""Is a dictionary optimal? Statements about local optima of L1 dictionaries, without a data model.

codes         optimal_codes, amortisation_gap         what the encoder loses
violations    stationarity, pair_identity             whether directions could turn
residual      residual_structure                      what is left of x, and why
antipodal     antipodal_pairs                         signed directions held as two latents
cone          cone_condition                          codes that no L1 dictionary keeps
absorption    predict_absorption                      the same for labelled concepts
splits        splitting                               latents of SAEs of growing width
convex        solve_large_dictionary                  the best directions among many, certified
coarsening    coarsening_path, merge_tree             how they merge
gap           wide_limit, optimality_gap              all on one scale
penalty       penalty_of, lam_of_l0                   the price of a unit of z
toy           tokens whose concepts are known

Sources: arXiv 2606.02385; Gribonval & Schnass 2010 (0904.4774). Every function works in float64.
"""

from ssae.theory.absorption import Prediction, predict_absorption
from ssae.theory.antipodal import AntipodalPair, antipodal_pairs
from ssae.theory.coarsening import Merge, coarsening_path, merge_tree
from ssae.theory.coded import Coded, coded, coded_by
from ssae.theory.codes import AmortisationGap, Codes, amortisation_gap, optimal_codes
from ssae.theory.cone import Cone, cone_condition
from ssae.theory.convex import LargeDictionary, candidates_of, solve_large_dictionary
from ssae.theory.gap import OptimalityGap, Scale, WideLimit, optimality_gap, wide_limit
from ssae.theory.penalty import Penalty, lam_of_l0, penalty_of
from ssae.theory.residual import ResidualStructure, residual_structure
from ssae.theory.splits import Child, Family, splitting
from ssae.theory.violations import PairIdentity, Stationarity, pair_identity, stationarity

__all__ = [
    "AmortisationGap",
    "AntipodalPair",
    "Child",
    "Coded",
    "Codes",
    "Cone",
    "LargeDictionary",
    "Merge",
    "OptimalityGap",
    "PairIdentity",
    "Penalty",
    "Prediction",
    "ResidualStructure",
    "Scale",
    "Family",
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
    "predict_absorption",
    "residual_structure",
    "solve_large_dictionary",
    "splitting",
    "stationarity",
    "wide_limit",
]
