import math

import pytest

from paretune.search.front_trial import FrontSpec
from paretune.search.jobs import Scored
from paretune.search.standing import contenders, on_front, rates_of, standing, told_apart
from paretune.search.verdict import recommend
from tests.search.race_help import candidate

TRAINED = {"head": 0, "lora": 95, "fish": 100, "random": 100, "full": 10_000, "bitfit": 40}


def results(method, scores, share=1.0, lr=1e-3, first=0):
    named = candidate(method)
    return [
        (
            FrontSpec(named.name, method, {}, named.budget, lr, share, seed),
            Scored(score, 1.0, 1.0, "bad" if score is None else "", 0.5, {"trained": TRAINED[method]}),
        )
        for seed, score in enumerate(scores, first)
    ]


def stand(method, scores, share=1.0, higher=True):
    found = standing(candidate(method), results(method, scores, share), higher)
    assert found is not None
    return found


def test_the_largest_share_counts_and_there_the_best_rate():
    rows = (
        results("fish", [0.9], 0.25) + results("fish", [0.5], 1.0, 1e-3) + results("fish", [0.6], 1.0, 1e-2)
    )
    found = standing(candidate("fish"), rows, True)
    assert (found.share, found.lr, found.mean) == (1.0, 1e-2, 0.6)
    assert standing(candidate("fish"), rows, False).lr == 1e-3
    assert standing(candidate("lora"), rows, True) is None
    assert standing(candidate("fish"), results("fish", [None]), True) is None


def test_a_rate_that_failed_under_a_seed_comes_after_one_that_did_not():
    rows = results("fish", [0.9, None], lr=1e-2) + results("fish", [0.5, 0.5], lr=1e-3)
    assert standing(candidate("fish"), rows, True).lr == 1e-3


def test_rates_by_their_scores():
    rows = [r for lr, s in ((1e-3, 0.2), (1e-2, 0.4), (1e-1, None)) for r in results("fish", [s], 0.25, lr)]
    assert rates_of(candidate("fish"), rows, 0.25, True) == [1e-2, 1e-3]
    assert rates_of(candidate("fish"), rows, 0.25, False) == [1e-3, 1e-2]
    assert rates_of(candidate("fish"), rows, 1.0, True) == []


def test_pairs_tell_apart_what_seeds_move_together():
    best = stand("fish", [0.9, 0.5, 0.7])
    behind, around = stand("lora", [0.89, 0.488, 0.69]), stand("random", [0.5, 0.9, 0.6])
    assert [each.candidate.method for each in contenders(best, [behind, around])] == ["random"]
    lead = told_apart(best, [behind])["lora 1%"]
    assert lead.low < 0.0107 < lead.high < 0.02
    assert told_apart(best, [behind, around])["lora 1%"].low < lead.low  # more comparisons, wider
    assert told_apart(best, [stand("lora", [0.1], 0.25)])["lora 1%"].low == -math.inf
    assert contenders(best, [stand("lora", [0.1, 0.1])])  # two seeds tell nobody apart


def test_the_front_is_what_nobody_beats_on_both():
    all_of = [stand("head", [0.4]), stand("lora", [0.6]), stand("fish", [0.6]), stand("full", [0.7])]
    assert on_front(all_of) == {"head", "lora 1%", "full"}
    assert on_front([*all_of, stand("random", [0.99], share=0.25)]) == {"head", "lora 1%", "full"}
    assert on_front([]) == set()


def test_the_sentence_names_what_is_simpler_and_how_much_worse_it_may_be():
    near = [
        stand("fish", [0.81, 0.79, 0.83]),
        stand("lora", [0.80, 0.80, 0.81]),
        stand("head", [0.1, 0.1, 0.1]),
    ]
    advice = recommend([*near, stand("full", [0.9, 0.9, 0.91])], "f1", True)
    assert (advice.candidate, advice.simpler) == ("fish 1%", ["lora 1%"])
    assert advice.text.startswith("Take fish 1%: f1 0.810 on held-out data (95 % interval 0.760 to 0.860, 3")
    most = told_apart(near[0], near[1:])["lora 1%"].high
    assert f"Simpler, and not told apart from it: lora 1% (0.007 worse, at most {most:.3f})." in advice.text
    assert "as good" not in advice.text
    assert "Against full fine-tuning it is -0.093 (" in advice.text
    assert "head" not in advice.text


def test_what_is_not_simpler_is_only_not_told_apart():
    advice = recommend([stand("lora", [0.8, 0.7, 0.9]), stand("fish", [0.8, 0.7, 0.88])], "f1", True)
    assert advice.simpler == []
    assert "Not told apart from it: fish 1% (0.007 worse, at most " in advice.text
    alone = recommend([stand("lora", [0.8, 0.81, 0.8]), stand("fish", [0.1, 0.11, 0.1])], "f1", True)
    assert "told apart from everything else" in alone.text


def test_two_seeds_do_not_make_a_worse_method_as_good():
    advice = recommend([stand("random", [0.75, 0.80]), stand("head", [0.50, 0.69])], "accuracy", True)
    assert advice.simpler == []
    assert "Too few seeds to tell: head (0.180 worse)." in advice.text
    assert "not told apart" not in advice.text
    alone = recommend([stand("random", [0.8]), stand("head", [0.6])], "accuracy", True)
    assert "Too few seeds to tell: head (0.200 worse)." in alone.text


@pytest.mark.parametrize(("higher", "shown"), [(True, "0.500"), (False, "0.500")])
def test_losses_are_shown_as_they_are(higher, shown):
    advice = recommend([stand("fish", [0.5, 0.5], higher=higher)], "loss", higher)
    assert f"loss {shown} on held-out" in advice.text


def test_one_short_trial_is_called_that():
    advice = recommend([stand("fish", [0.5], share=0.25)], "f1", True)
    assert "(one seed)" in advice.text
    assert "after 25% of the steps" in advice.text
    assert recommend([], "f1", True) is None


def mute(spec, score, loss, correlation=0.0):
    return FrontSpec(**spec), Scored(
        score, 1.0, 1.0, loss=loss, details={"scores": {"matthews": correlation}}
    )


def test_models_that_give_one_answer_say_nothing_of_their_rate():
    rates = (1e-3, 3e-3, 1e-2, 3e-2)
    spec = {
        "candidate": "fish 1%",
        "method": "fish",
        "settings": {},
        "budget": "1%",
        "share": 0.25,
        "seed": 0,
    }
    silent = [mute(spec | {"lr": lr}, 0.7, loss) for lr, loss in ((1e-2, 0.61), (3e-2, 0.58))]
    found = standing(candidate("fish"), silent, True, rates)
    assert (found.lr, found.worth) == (1e-2, (0.7, -math.inf))
    assert rates_of(candidate("fish"), silent, 0.25, True, rates) == [1e-2, 3e-2]
    # One that answers differently to different examples is worth more than its equals, whatever its loss.
    heard = [*silent, mute(spec | {"lr": 1e-3}, 0.7, 0.9, correlation=0.1)]
    assert standing(candidate("fish"), heard, True, rates).lr == 1e-3
    assert rates_of(candidate("fish"), heard, 0.25, True, rates) == [1e-3, 1e-2, 3e-2]
