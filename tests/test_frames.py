"""Laws of frames.py: tables add up, name what they count, and hold their controls."""

import polars as pl
import pytest
import torch
from run_builders import build_run

from devinterp_func import attribution, batches, cards, frames, records, text, verdicts
from devinterp_func.activations import Extremes, Means
from devinterp_func.neurons import Neuron
from devinterp_func.verdicts import Counts, Trial

SHAPES = {"layers.0.linear1.weight": (2, 3), "layers.2.linear2.weight": (3, 2)}
VOCAB = text.planted(key=0, n_tokens=500).vocab
UP, DOWN = Neuron("layers.0.linear1.weight", 1), Neuron("layers.2.linear2.weight", 0)


def counts(pairs):
    """Counts of tokens: id -> (count, flips)."""
    count, flips = torch.zeros(len(VOCAB), dtype=torch.int64), torch.zeros(len(VOCAB), dtype=torch.int64)
    for token, (n, flipped) in pairs.items():
        count[token], flips[token] = n, flipped
    return Counts(count, flips)


TRIALS = [
    Trial(UP, torch.tensor([3, 4]), counts({3: (10, 5), 5: (20, 10), 6: (9, 0)}), counts({3: (4, 1)}), counts({})),
    Trial(DOWN, torch.tensor([7]), counts({7: (8, 8)}), counts({7: (8, 2), 9: (5, 5)}), counts({7: (8, 1)})),
]
REFERENCE = torch.full((len(VOCAB),), 10)


def test_units_add_up_over_epochs_and_weights():
    found = torch.arange(24).view(2, 12)
    frame = frames.unit_frame(found, SHAPES)
    assert frame["unit"].to_list() == list(SHAPES) and frame["weights"].to_list() == [6, 6]
    assert frame["outliers"].sum() == found.sum() and frame["share"].sum() == pytest.approx(1)
    assert (frame["epoch 1"] + frame["epoch 2"]).to_list() == frame["outliers"].to_list()
    assert frame["outliers per weight"].to_list() == [n / 6 for n in frame["outliers"]]


def test_units_without_outliers_have_no_share():
    assert frames.unit_frame(torch.zeros(1, 12, dtype=torch.int64), SHAPES)["share"].to_list() == [0, 0]


def test_parameters_are_named_by_unit_and_flat_index():
    found = torch.arange(12)[None]
    frame = frames.parameter_frame(torch.tensor([0, 5, 6, 11]), found, SHAPES, [[1], [], [2, 3], [1]], VOCAB)
    first, last = SHAPES
    assert frame["unit"].to_list() == [first, first, last, last]
    assert frame["flat index"].to_list() == [0, 5, 0, 5] and frame["outliers"].to_list() == [0, 5, 6, 11]
    assert frame["notable"].to_list()[2].split() == VOCAB.decode([2, 3])


def test_the_attribution_table_is_the_records_row_by_row(tmp_path):
    run = build_run(tmp_path / "run")
    shapes = {"a": (2**31,)}  # the records' parameter numbers are arbitrary; negative ones are left out
    shard = next(iter(records.scan_shards(run)))
    rows = attribution.rows(shard)
    some = attribution.Rows(*(column[rows.parameter >= 0] for column in rows))
    frame = frames.attribution_frame(some, shapes)
    assert len(frame) == len(some.step)
    assert frame["flat index"].to_list() == some.parameter.tolist()
    assert frame["datum"].to_list() == some.datum.tolist()
    assert frame["|delta|"].drop_nans().to_list() == [abs(d) for d in frame["delta"].drop_nans()]


def test_neurons_carry_their_counts_words_and_choice():
    events = torch.tensor([[0, 2], [1, 1], [0, 3]], dtype=torch.int16)
    frame = frames.neuron_frame(
        [UP, DOWN], torch.tensor([1, 9]), events, {DOWN: [6, 8]}, {"notable": [[], [4]]}, [DOWN], VOCAB
    )
    assert frame["neuron"].to_list() == [str(UP), str(DOWN)] and frame["sublayer"].to_list() == ["1.1", "3.2"]
    assert frame["data"].to_list() == [1, 3] and frame["frequent parameters"].to_list() == [0, 2]
    assert frame["notable"].to_list() == ["", VOCAB.decode([4])[0]] and frame["chosen"].to_list() == [False, True]


def test_flip_tables_are_the_posts_with_controls_most_flips_first():
    frame = frames.flips_frame(TRIALS, VOCAB)
    own = frame.filter(pl.col("neuron") == str(UP))
    assert own["token"].to_list() == VOCAB.decode([5, 3])  # token 6 never flips
    assert own["flips"].to_list() == [10, 5] and own["proportion"].to_list() == [0.5, 0.5]
    assert own["notable"].to_list() == [False, True]
    assert own["random data: proportion"].to_list() == [0, 0.25] and own["random data: count"].to_list() == [0, 4]
    other = frame.filter(pl.col("neuron") == str(DOWN))
    assert other["random neurons: proportion"].to_list() == [1 / 8]


def test_a_neuron_that_flips_nothing_has_no_rows():
    silent = TRIALS[0]._replace(attributed=counts({3: (10, 0)}))
    frame = frames.flips_frame([silent, TRIALS[1]], VOCAB)
    assert frame["neuron"].to_list() == [str(DOWN)]
    assert frames.flips_frame([silent], VOCAB).is_empty()


def test_looks_are_in_words_beside_the_datum_attributed_most():
    data = batches.Data(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[2, 3], [4, 5]]))
    looks = {
        UP: cards.Look(None, None, 0.5, 0.25, torch.tensor([6])),
        DOWN: cards.Look(torch.tensor([1, 2]), torch.tensor([3]), -0.1, 0.0, torch.tensor([7])),
    }
    frame = frames.look_frame(looks, {UP: (1, 3), DOWN: (0, 9)}, data, VOCAB)
    assert frame["logits raised"].to_list() == ["", " ".join(VOCAB.decode([1, 2]))]
    assert frame["text"].to_list() == [" ".join(VOCAB.decode(ids)) for ids in ([3, 4], [1, 2])]
    assert frame["times"].to_list() == [3, 9] and frame["share active"].to_list() == [0.25, 0.0]


def test_verdicts_and_sublayers_agree_with_the_trials():
    verdict = verdicts.judge(TRIALS, REFERENCE, key=0)
    frame = frames.verdict_frame(TRIALS, verdict, VOCAB)
    assert frame["flipped"].to_list() == [2, 1] and frame["flipped, random data"].to_list() == [0, 2]
    assert frame["both"].to_list() == VOCAB.decode([3, 7]) and frame["notable and flipped"].to_list() == [1, 1]
    summary = frames.sublayer_frame(TRIALS, verdict)
    assert summary["sublayer"].to_list() == ["1.1", "3.2"]
    assert summary["flipped tokens"].to_list() == [2, 1] and summary["notable share"].to_list() == [0.5, 1]
    assert summary["flipped tokens, random data"].to_list() == [1, 2]
    assert summary["notable share, random neurons"].to_list() == [None, 1]  # nothing flips: no share
    assert summary["post: flipped tokens"].to_list() == [frames.POST["1.1"][0], frames.POST["3.2"][0]]


def test_ranks_of_activation_count_from_the_most_active():
    means = Means(torch.tensor([30, 0, 40]), torch.tensor([[1.0, 3.0], [0.0, 0.0], [2.0, -1.0]]), torch.ones(3, 2))
    row = frames.activation_row(UP, "word", means, 0)
    assert row["rank among neurons"] == 1 and row["of neurons"] == 2 and row["mean activation"] == 3
    absent = frames.activation_row(UP, "word", means, 1)
    assert absent["mean activation"] is None and absent["positions"] == 0
    extremes = Extremes(torch.tensor([4]), torch.tensor([-1.0]), torch.tensor([2]), torch.tensor([5.0]))
    frame = frames.extremes_frame(DOWN, "word", extremes)
    assert frame["most active"].to_list() == [2] and frame["least active"].to_list() == [4]


@pytest.mark.parametrize(
    "unit, name",
    [
        ("layers.0.self_attn.in_proj_weight", "1.in_proj"),
        ("layers.1.self_attn.out_proj.weight", "2.out_proj"),
        ("layers.11.linear2.weight", "12.2"),
        ("decoder.weight", "decoder.weight"),
    ],
)
def test_sublayers_have_the_posts_names(unit, name):
    assert frames.sublayer_name(Neuron(unit, 0)) == name
