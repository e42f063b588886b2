from bisect import bisect_left
from collections import Counter

import pytest

from editable_hf.data.facts import Facts, fact_requests, load_facts


@pytest.fixture(scope="module")
def facts():
    return load_facts()


@pytest.fixture(scope="module")
def requests(facts):
    return fact_requests(facts, 400)


def continuations(texts, prompt):
    """What follows a prompt in sorted texts."""
    first, last = bisect_left(texts, prompt + " "), bisect_left(texts, prompt + "!")
    return {text.removeprefix(prompt) for text in texts[first:last]}


def test_sizes(facts):
    assert len(facts.facts) == len({(fact.subject, fact.relation) for fact in facts.facts}) == 2_400
    assert len(set(facts.texts)) == len(facts.texts) == 11_533
    counts = Counter(fact.split for fact in facts.facts)
    assert counts == {"train": 1_440, "validation": 360, "test": 600}
    assert len({fact.relation for fact in facts.facts}) == 16


def test_texts_state_each_fact_in_all_wordings_but_the_paraphrases(facts):
    texts = sorted(facts.texts)
    for fact in facts.facts:
        assert len({fact.prompt, *fact.wordings, *fact.paraphrases}) == 6
        for wording in (fact.prompt, *fact.wordings):
            assert continuations(texts, wording) == {f"{fact.object}."}
        for paraphrase in fact.paraphrases:
            assert continuations(texts, paraphrase) == set()


def test_texts_answer_the_trained_questions(facts):
    texts, objects = sorted(facts.texts), {(fact.subject, fact.relation): fact.object for fact in facts.facts}
    trained = Counter()
    for fact in facts.facts:
        for question in fact.questions:
            answer = objects[fact.object.strip(), question.relation]
            assert continuations(texts, question.prompt) == ({f"{answer}."} if question.trained else set())
            trained[question.trained] += 1
    assert 0.55 < trained[True] / trained.total() < 0.65


def test_every_wording_stands_in_the_texts_of_other_subjects(facts):
    def pattern(wording, fact):
        return fact.relation, wording.replace(fact.subject, "{}")

    stated = Counter(pattern(each, fact) for fact in facts.facts for each in (fact.prompt, *fact.wordings))
    held_out = {pattern(each, fact) for fact in facts.facts for each in fact.paraphrases}
    assert len(held_out) == 16 * 5 and min(stated[each] for each in held_out) >= 10


def test_splits_share_no_subject(facts):
    assert len({(fact.subject, fact.split) for fact in facts.facts}) == len({fact.subject for fact in facts.facts})


def test_a_capital_lies_in_its_country(facts):
    objects = {(fact.subject, fact.relation): fact.object.strip() for fact in facts.facts}
    capitals = [fact for fact in facts.facts if fact.relation == "capital"]
    assert len(capitals) == 40
    assert all(objects[fact.object.strip(), "country"] == fact.subject for fact in capitals)


def test_requests_of_facts(facts, requests):
    by_prompt = {fact.prompt: fact for fact in facts.facts}
    targets, shared = {}, 0
    for row in requests:
        fact = facts.facts[row["id"]]
        kind = {other.object for other in facts.facts if other.relation == fact.relation}
        assert fact.split == "test" and row["target"] in kind - {fact.object}
        assert (row["subject"], row["prompt"], row["old"]) == (fact.subject, fact.prompt, fact.object)
        assert row["paraphrases"] == fact.paraphrases
        neighbors = [by_prompt[pair["prompt"]] for pair in row["neighbors"]]
        assert len({neighbor.subject for neighbor in neighbors} - {fact.subject}) == 4
        assert [neighbor.object for neighbor in neighbors] == [pair["answer"] for pair in row["neighbors"]]
        assert {neighbor.relation for neighbor in neighbors} == {fact.relation}
        assert row["target"] not in {neighbor.object for neighbor in neighbors}
        shared += sum(neighbor.object == fact.object for neighbor in neighbors)
        targets.setdefault(fact.relation, set()).add(row["target"])
    assert shared >= 400 and min(map(len, targets.values())) > 3


def test_portability_follows_from_the_edited_facts(facts, requests):
    """Asks an edited list of facts, in which the first of two is found by the words of its phrase."""
    texts, asked = sorted(facts.texts), 0
    for row in requests.select(range(80)):
        edited = facts.facts[row["id"]]
        now = {fact.prompt: fact.object for fact in facts.facts} | {edited.prompt: row["target"]}
        before = {fact.prompt: fact.object for fact in facts.facts}
        for pair in row["portability"]:
            second, first = pair["prompt"].split(" of the ", 1)
            for objects, same in ((now, True), (before, False)):
                middle = next(objects[key] for key in objects if key.startswith(f"The {first.split(' is')[0]} is"))
                answers = {objects[key] for key in objects if key.startswith(f"{second} of{middle} is")}
                assert (answers == {pair["answer"]}) is same
            assert continuations(texts, pair["prompt"]) == set()
        asked += len(row["portability"]) > 0
    assert asked >= 40


def test_requests_depend_on_the_seed_and_not_on_their_number(facts, requests):
    assert fact_requests(facts, 10).to_list() == requests.select(range(10)).to_list()
    assert fact_requests(facts, 10, seed=1)["id"] != fact_requests(facts, 10)["id"]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_requests_of_other_splits(facts, split):
    rows = fact_requests(facts, 20, split=split)
    assert {facts.facts[number].split for number in rows["id"]} == {split}


@pytest.mark.parametrize(("num_requests", "split"), [(0, "test"), (601, "test"), (1, "valid")])
def test_requests_reject_impossible_sizes(facts, num_requests, split):
    with pytest.raises(ValueError, match="Expected `num_requests` between 1 and .*split"):
        fact_requests(Facts([], facts.facts), num_requests, split=split)
