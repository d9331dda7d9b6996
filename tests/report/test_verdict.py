from ssae.report.verdict import verdict


def changed(metrics, sae, factor, names=("fvu", "perplexity_spliced")):
    copy = [dict(row) for row in metrics]
    for row in copy:
        if (row["sae"], row["split"]) == (sae, "subdomain_test") and row["name"] in names:
            row.update({k: row[k] * factor for k in ("value", "low", "high") if row[k] is not None})
    return copy


def test_the_verdict_says_yes_no_and_in_part(metrics):
    assert verdict(metrics).answer.startswith("Yes: ")
    assert verdict(changed(metrics, "specialist", 2)).answer.startswith("No: ")
    part = verdict(changed(metrics, "specialist", 2, ["fvu"])).answer
    assert part.startswith("Only in part")
    assert "lower spliced perplexity than the generalist and the control" in part
    assert "but not lower fvu than the generalist and the control" in part


def test_the_verdict_gives_the_numbers_and_the_price(metrics):
    against, _, tilted, price, beside = verdict(metrics).reasons
    assert "fvu is lower, 0.1400 against 0.2000 (-30.0%)" in against
    assert "perplexity is lower, 22.37 against 25.37 (-11.8%)" in against
    assert tilted.startswith("Tilted risk against ERM")
    assert "General text is worse than with the generalist" in price
    assert "than with the control" in beside
    assert "fvu is higher, 0.1900 against 0.1300 (+46.2%" in price


def test_the_verdict_admits_overlapping_intervals_and_a_larger_budget(metrics):
    near = changed(metrics, "control", 0.78, ["fvu"])
    assert verdict(near).answer.startswith("Yes, but not clearly: ")
    assert "holds 0 for fvu against the control" in verdict(near).answer
    for row in near:
        if row["name"] == "l0" and row["sae"] == "specialist":
            row["value"] *= 2
    assert "Not at equal sparsity" in verdict(near).reasons[-1]


def test_a_paired_difference_decides_where_separate_intervals_overlap(metrics):
    near = changed(metrics, "control", 0.78, ["fvu"])
    difference = {
        "name": "fvu_difference", "sae": "specialist", "reference": "control", "band": "all",
        "split": "subdomain_test", "value": -0.01, "low": -0.02, "high": -0.005,
    }  # fmt: skip
    assert verdict([*near, difference]).answer.startswith("Yes: ")
    difference["high"] = 0.001
    assert verdict([*near, difference]).answer.startswith("Yes, but not clearly: ")


def test_numbers_without_intervals_are_called_unsure(metrics):
    bare = [{**row, "low": None, "high": None} for row in metrics]
    assert "may be chance" in verdict(bare).reasons[-1]
    assert not any("may be chance" in reason for reason in verdict(metrics).reasons)


def test_equal_is_not_better(metrics):
    same = [row for row in metrics if row["sae"] != "specialist"]
    same += [{**row, "sae": "specialist"} for row in metrics if row["sae"] == "generalist"]
    assert not verdict(same).answer.startswith("Yes")
    assert "is the same" in verdict(same).reasons[0]


def test_a_missing_control_is_said(metrics):
    answer = verdict([row for row in metrics if row["sae"] != "control"]).answer
    assert answer.startswith("Yes, as far as measured")
    assert "Not measured: fvu against the control" in answer


def with_recall(metrics, reference, low, high):
    """Return the rows with another difference of tail_recall to a reference."""
    copy = [dict(row) for row in metrics]
    for row in copy:
        of_specialist = (row["name"], row["sae"]) == ("tail_recall_difference", "specialist")
        if of_specialist and row["reference"] == reference:
            row.update(low=low, high=high)
    return copy


def test_the_verdict_says_against_whom_tail_recall_rose(metrics):
    rose = "Tail recall rose against the generalist, the control and the ERM specialist."
    assert verdict(metrics).answer.endswith(rose)
    unclear = with_recall(metrics, "specialist_erm", -0.01, 0.07)
    assert verdict(unclear).answer.endswith(
        "Tail recall rose against the generalist and the control and did not clearly change "
        "against the ERM specialist."
    )


def test_the_verdict_says_that_tail_recall_fell(metrics):
    rows = [row for row in metrics if not row["name"].startswith("tail_recall")]
    for sae, value in (("generalist", 0.4), ("specialist", 0.3)):
        rows.append(
            {"name": "tail_recall", "sae": sae, "split": "subdomain_test", "band": "all",
             "value": value, "low": value - 0.01, "high": value + 0.01}
        )  # fmt: skip
    assert verdict(rows).answer.endswith("Tail recall fell against the generalist.")
    rows[-1]["low"] = None
    found = verdict(rows)
    assert found.answer.endswith("Tail recall fell (no interval) against the generalist.")
    assert "may be chance" in found.reasons[-1]


def test_numbers_of_the_tail_stand_beside_the_others(metrics):
    against, beside, tilted, *_ = verdict(metrics).reasons
    assert "tail recall is higher, 0.3400 against 0.2500 (+36.0%)" in against
    assert "tail recall is higher, 0.3400 against 0.2800 (+21.4%)" in beside
    assert "tail error is lower, 0.1600 against 0.1800 (-11.1%" in tilted


def test_numbers_of_before_tail_recall_get_the_verdict_that_they_had(metrics):
    old = [row for row in metrics if not row["name"].startswith("tail_")]
    found = verdict(old)
    assert found.answer.endswith("than the generalist and the control.")
    assert "Tail recall was not measured." in found.reasons
