"""What a bigram walk found as tables: the shifts of each phase of training in words, net changes, courses, and more."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from devinterp_func import bigram, bigram_corpus, bigram_walk, keys
from devinterp_func.batches import Data
from devinterp_func.bigram_corpus import Counts, Pairs
from devinterp_func.bigram_walk import W_E, W_U, Shifts
from devinterp_func.transformer import Config
from devinterp_func.tree import Params
from devinterp_func.vocabulary import Vocab

EARLY = (10, 100, 1000)  # steps at which phases of the first epoch begin
Phase = tuple[int, int]  # first step, and the one after the last


def phases(start: int, stop: int, per_epoch: int) -> list[Phase]:
    """The steps start to stop - 1 cut at 10, 100 and 1,000 and wherever an epoch begins.

    >>> phases(0, 5000, 2928)
    [(0, 10), (10, 100), (100, 1000), (1000, 2928), (2928, 5000)]
    """
    early = [step for step in EARLY if step < per_epoch]
    borders = sorted({start, stop, *early, *range(0, stop, per_epoch)})
    kept = [step for step in borders if start <= step <= stop]
    return list(zip(kept[:-1], kept[1:], strict=True))


def named(phase: Phase) -> str:
    """The phase's first and last step."""
    return f"{phase[0]:,} to {phase[1] - 1:,}"


# ---- steps


def largest_frame(
    shifts: Shifts, spans: Sequence[Phase], data: Data, found: Counts, vocab: Vocab, most: int = 15, each: int = 2
) -> pl.DataFrame:
    """The largest shifts that single steps of each phase made, and the text that caused the most of each.

    A pair stands once, at its largest shift; a token at most ``each`` times as output and as input.

    Args:
        shifts: of ``bigram_walk.read``.
        spans: of ``phases``.
        data, found, vocab: the training data, their neighbours' counts, their words.
        most: rows of a phase.
        each: rows of a token, since one step moves a frequent token's entries all together.
    """
    rows = []
    for span in spans:
        part, value = _within(shifts, span)
        V, k = len(vocab), value.shape[1]
        pair = part.output.flatten().long() * V + part.input.flatten()
        order = value.flatten().abs().argsort(descending=True, stable=True)
        for at in spaced(pair[order] // V, pair[order] % V, most, each):
            i = int(order[at])
            times = (pair == pair[i]).nonzero()[:, 0]
            step, row = part.step[i // k], (i // k, i % k)
            id, output, input = int(part.datum[row]), int(part.output[row]), int(part.input[row])
            pairs = Pairs(torch.tensor([output]), torch.tensor([input]))
            rows.append(
                {
                    "steps": named(span),
                    "bigram": words(output, input, vocab),
                    "shift": float(value[row]),
                    "at step": int(step),
                    "first step": int(part.step[times[0] // k]),
                    "times": len(times),
                    "embedding moved": float(part.embedding[row]),
                    "unembedding moved": float(part.unembedding[row]),
                    "in the corpus": int(bigram_corpus.look_up(found, pairs)),
                    "log-odds": float(bigram_corpus.log_odds(found, pairs)),
                    "datum": id,
                    "its part": float(part.amount[row]),
                    "text": quote(data.tokens[id], data.targets[id], output, input, vocab),
                }
            )
    return pl.DataFrame(rows)


def phase_frame(
    shifts: Shifts, spans: Sequence[Phase], found: Counts, vocab: Vocab, *, key: keys.Key | int
) -> pl.DataFrame:
    """What the k largest shifts of all steps of a phase have in common, with their tokens exchanged for control.

    Args:
        shifts, spans, found, vocab: as in ``largest_frame``.
        key: of the exchange.
    """
    rows = []
    for span in spans:
        part, value = _within(shifts, span)
        pairs = Pairs(part.output.flatten().long(), part.input.flatten().long())
        other = bigram_corpus.exchanged(pairs, key=keys.fold_in(key, *span))
        total = sum(term.abs().sum() for term in (part.embedding, part.unembedding, part.cross))
        common = Counter(pairs.output.tolist()).most_common(5)
        row: dict[str, object] = {"steps": named(span), "median of the largest": float(value[:, 0].abs().median())}
        row["median of the k-th"] = float(value[:, -1].abs().median())
        row["embedding's share"] = float(part.embedding.abs().sum() / total)
        for name, these in (("", pairs), (", exchanged", other)):
            row[f"in the corpus{name}"] = float((bigram_corpus.look_up(found, these) > 0).double().mean())
            right = bigram_corpus.log_odds(found, these).sign() == value.flatten().sign()
            row[f"towards the log-odds{name}"] = float(right.double().mean())
        row["outputs"] = ", ".join(f"{vocab.tokens[o]} {n / len(pairs.output):.0%}" for o, n in common)
        row["pairs multiplied"] = float(part.pairs.double().mean())
        row["missed"] = float(part.missed.max())
        rows.append(row)
    return pl.DataFrame(rows)


def size_frame(shifts: Shifts, every: int) -> pl.DataFrame:
    """Mean |shift| of the largest and of the k-th largest pair, over windows of so many steps."""
    value = shifts.value().abs()
    columns = {"step": shifts.step.double(), "the largest": value[:, 0], f"number {value.shape[1]}": value[:, -1]}
    return pl.DataFrame({name: [float(part.mean()) for part in x.split(every)] for name, x in columns.items()})


def spaced(output: Int[Tensor, "m"], input: Int[Tensor, "m"], most: int, each: int) -> list[int]:
    """Places of pairs in their order, without repetition, at most ``each`` of a token on either side.

    >>> spaced(torch.tensor([1, 1, 1, 2]), torch.tensor([3, 3, 4, 4]), most=3, each=1)
    [0, 3]
    """
    places: list[int] = []
    pairs, outputs, inputs = set[tuple[int, int]](), Counter[int](), Counter[int]()
    for i, (o, a) in enumerate(zip(output.tolist(), input.tolist(), strict=True)):
        if len(places) == most:
            break
        if (o, a) not in pairs and outputs[o] < each and inputs[a] < each:
            places.append(i)
            pairs.add((o, a))
            outputs[o] += 1
            inputs[a] += 1
    return places


def quote(
    tokens: Int[Tensor, "C"], targets: Int[Tensor, "C"], output: int, input: int, vocab: Vocab, width: int = 6
) -> str:
    """A datum's text where the pair stands in it: else where its output is wanted, else where its input stands.

    >>> vocab = Vocab(("<unk>", "new", "york", "."))
    >>> quote(torch.tensor([3, 1, 2]), torch.tensor([1, 2, 3]), 2, 1, vocab)
    '. (new → york) .'
    """
    place = int((2 * (targets == output).int() + (tokens == input).int()).argmax())
    text = vocab.decode([*tokens.tolist(), int(targets[-1])])
    before, after = text[max(0, place - width) : place], text[place + 2 : place + 2 + width]
    return " ".join([*before, f"({text[place]} → {text[place + 1]})", *after])


# ---- weights


def net_frame(
    before: Params, after: Params, span: Phase, found: Counts, vocab: Vocab, least: int, most: int = 15, each: int = 2
) -> pl.DataFrame:
    """The largest changes of W_UE over a phase: among all V² pairs exactly, and among those that the corpus has.

    Args:
        before, after: the weights around the phase.
        span: the phase.
        found, vocab: counts and words of the training data.
        least: how often a pair must occur to be counted as the corpus'.
        most, each: as in ``largest_frame``.
    """
    whole = [params[name] for params in (before, after) for name in (W_U, W_E)]
    sides = (found.second, found.first) * 2
    centred = [bigram_corpus.centre(x, n) for x, n in zip(whole, sides, strict=True)]
    common = bigram_corpus.seen(found, least)
    rows: list[dict[str, object]] = []
    for name, (U, E, new_U, new_E) in (("all pairs", whole), ("all pairs, centred", centred)):
        top = bigram.top_shifts(U, E, new_U - U, new_E - E, k=min(40 * most, len(U) ** 2))
        rows += _changes(name, Pairs(top.output, top.input), (U, E, new_U, new_E), most, each, found, vocab)
    U, E, new_U, new_E = centred
    change = bigram.entries(*common, new_U, new_E) - bigram.entries(*common, U, E)
    order = change.abs().argsort(descending=True, stable=True)
    common = Pairs(common.output[order], common.input[order])
    rows += _changes("the corpus' bigrams, centred", common, (U, E, new_U, new_E), most, each, found, vocab)
    return pl.DataFrame(rows).select(pl.lit(named(span)).alias("steps"), pl.all())


def course_frame(shifts: Shifts, groups: dict[str, slice], pairs: Pairs, vocab: Vocab, every: int) -> pl.DataFrame:
    """W_UE over the walk: the mean of each group of chosen pairs, and each pair of the groups named "".

    Args:
        shifts: of ``bigram_walk.read``.
        groups: name -> places among the chosen pairs.
        pairs: the chosen pairs.
        vocab: their words.
        every: steps from one row to the next.
    """
    entry = shifts.entry[::every]
    columns = {"step": shifts.step[::every].numpy()}
    for name, places in groups.items():
        if name:
            columns[name] = entry[:, places].mean(1).numpy()
    for at in range(*groups.get("", slice(0)).indices(entry.shape[1])):
        columns[words(int(pairs.output[at]), int(pairs.input[at]), vocab)] = entry[:, at].numpy()
    return pl.DataFrame(columns)


def check_frame(shifts: Shifts, snapshots: Iterable[tuple[int, Params]], pairs: Pairs) -> pl.DataFrame:
    """At each snapshot that a walk passed: do its shifts add up, and did the same weights come out again?

    Args:
        shifts: of ``bigram_walk.read``.
        snapshots: steps in the walk, or the one after its last, and the weights stored for them.
        pairs: the chosen pairs.
    """
    rows = []
    for step, params in snapshots:
        entry = bigram.entries(*pairs, params[W_U], params[W_E])
        row = {"step": step, "pairs": len(entry), "largest entry": float(entry.abs().max())}
        row["shifts miss it by"] = bigram_walk.telescope(shifts, step, entry)
        row["weights differ by"] = float(shifts.deviation[step - 1 - int(shifts.step[0])])
        rows.append(row)
    return pl.DataFrame(rows)


def correlation_rows(
    step: int,
    params: Params,
    found: Counts,
    sets: dict[str, Pairs],
    tokens: Int[Tensor, "n C"],
    config: Config,
    *,
    key: keys.Key | int,
) -> Iterator[dict[str, object]]:
    """How the weights of a snapshot go with the corpus' unigrams and bigrams.

    Args:
        step: the snapshot's.
        params: its weights.
        found: counts of the training data.
        sets: name -> pairs.
        tokens: some data, over whose positions logits are averaged.
        config: the model.
        key: of the exchanges.
    """
    direct = params[W_U] @ (found.first.to(params[W_E].dtype) / found.first.sum() @ params[W_E]) * config.d_model**0.5
    bias, mean = params["decoder.bias"], bigram_corpus.mean_logit(params, tokens, config)
    for name, x in (("decoder bias", bias), ("mean logit", mean), ("mean of the direct path", direct)):
        fit = bigram_corpus.fit_tokens(x, found.second, key=key)
        n = int((found.second > 0).sum())
        yield {"step": step, "of": "unigrams", "among": "tokens that occur", "n": n, "measure": name, **fit._asdict()}
    for measure, U, E in bigram_corpus.decoders(params, found, config):
        for among, pairs in sets.items():
            fit = bigram_corpus.fit_pairs(U, E, pairs, bigram_corpus.log_odds(found, pairs), key=key)
            n = len(pairs.output)
            yield {"step": step, "of": "bigrams", "among": among, "n": n, "measure": measure, **fit._asdict()}


def words(output: int, input: int, vocab: Vocab) -> str:
    """A pair in words: what comes first, and what follows."""
    return f"{vocab.tokens[input]} → {vocab.tokens[output]}"


def _within(shifts: Shifts, span: Phase) -> tuple[Shifts, Float[Tensor, "S k"]]:
    first = int(shifts.step[0])
    rows = slice(max(0, span[0] - first), span[1] - first)
    part = Shifts(*(field[rows] for field in shifts))
    return part, part.value()


def _changes(
    ranked: str,
    pairs: Pairs,
    matrices: Sequence[Tensor],
    most: int,
    each: int,
    found: Counts,
    vocab: Vocab,
) -> list[dict[str, object]]:
    places = torch.tensor(spaced(*pairs, most, each))
    kept = Pairs(pairs.output[places], pairs.input[places])
    U, E, new_U, new_E = matrices
    columns = (
        *kept,
        bigram.entries(*kept, U, E),
        bigram.entries(*kept, new_U, new_E),
        bigram_corpus.look_up(found, kept),
        bigram_corpus.log_odds(found, kept),
    )
    return [
        {
            "ranked": ranked,
            "bigram": words(o, i, vocab),
            "change": new - old,
            "before": old,
            "after": new,
            "in the corpus": n,
            "log-odds": odds,
        }
        for o, i, old, new, n, odds in zip(*(column.tolist() for column in columns), strict=True)
    ]
