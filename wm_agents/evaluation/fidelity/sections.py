"""The measurements as sections: a plain verdict, a table, a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from wm_agents.evaluation.fidelity.measure import Fidelity
from wm_agents.evaluation.fidelity.open_loop import Ahead
from wm_agents.evaluation.fidelity.plots import (
    plot_closed_loop,
    plot_doubt,
    plot_ends,
    plot_errors,
    plot_history,
    plot_ranking,
    plot_reliability,
    plot_rewards,
    plot_temperatures,
)


class Section(NamedTuple):
    """One heading of the page."""

    key: str
    title: str
    verdict: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    plot: Figure | None = None
    note: str = ""


def sections(found: Fidelity) -> list[Section]:
    """All sections, in the order of the page."""
    makers = (_frames, _rewards, _ends, _reliability, _gap, _ranking, _temperatures, _history, _doubt, _seeds)
    return [make(found) for make in makers]


def _frames(found: Fidelity) -> Section:
    loop = found.open_loop
    better, share = 0, ""
    for row in loop.horizons:
        if row.likely.obs_mse is None or row.copy_mse is None or row.likely.obs_mse >= row.copy_mse:
            break
        better = row.steps
        share = _share(row.likely.obs_mse / row.copy_mse)
    verdict = (
        f"Up to {_count(better, 'step')} ahead the dreamed frame is nearer to the real one than the last frame seen, "
        f"there with {share} of its error."
        if better
        else "Even one step ahead the dreamed frame is no nearer to the real one than the last frame seen."
    )
    return Section(
        "open_loop",
        "Frames by horizon",
        verdict,
        ["steps ahead", "windows", "most likely", "drawn", "copy last frame"],
        [
            [str(h.steps), f"{h.windows:,}", _num(h.likely.obs_mse), _num(h.sampled.obs_mse), _num(h.copy_mse)]
            for h in loop.horizons
        ],
        plot_errors(loop),
        "Mean squared error; pixels run from 0 to 1, vectors are in units of their spread. Dreams begin at real "
        "moments and are fed the real actions. Where the future is open, a perfect dream that is drawn has twice the "
        "error of a perfect most likely one. "
        f"A frame that the model has just seen comes back with {_num(loop.rec_mse)}.",
    )


def _rewards(found: Fidelity) -> Section:
    rows = found.open_loop.horizons
    first, last = rows[0], rows[-1]
    verdict = (
        f"{_ahead(first)} the reward correlates with the real one at {_num(first.likely.rew_corr)}; "
        f"summed over {_count(last.steps, 'step')} at {_num(last.likely.sum_corr)}, "
        f"where {_num(last.sum_mean)} came and {_num(last.sampled.sum_mean)} was dreamed."
        if first.likely.rew_corr is not None
        else f"The real reward or the dreamed one never changes: {_num(first.rew_var)} is its real variance."
    )
    return Section(
        "reward",
        "Rewards by horizon",
        verdict,
        [
            "steps ahead",
            "correlation",
            "squared error",
            "variance",
            "sum: correlation",
            "sum: real",
            "sum: most likely",
            "sum: drawn",
        ],
        [
            [
                str(h.steps),
                _num(h.likely.rew_corr),
                _num(h.likely.rew_mse),
                _num(h.rew_var),
                _num(h.likely.sum_corr),
                _num(h.sum_mean),
                _num(h.likely.sum_mean),
                _num(h.sampled.sum_mean),
            ]
            for h in rows
        ],
        plot_rewards(found.open_loop),
        "The real actions fit the real course of things: where the dream has taken another, they earn less in it. "
        "The variance is the error of who always says the mean.",
    )


def _ends(found: Fidelity) -> Section:
    loop, now, best = found.open_loop, found.reliability.now, found.reliability.best
    where = "drawn by the model itself" if found.reliability.drawn else f"cut-off {_num(now.cut_off)}"
    if not found.reliability.ends:
        verdict = "No real episode ended by itself, so nothing can be said of how well ends are foreseen."
    elif now.precision is None:
        verdict = f"One step ahead no end is ever foreseen; {now.ends} came ({where})."
    else:
        verdict = (
            f"One step ahead {_share(now.recall)} of {_count(now.ends, 'real end')} are foreseen, and "
            f"{_share(now.precision)} of the foreseen ends come ({where})."
        )
    if best is None:
        hint = (
            "The model draws its ends itself, with the probability it foresees, and no cut-off moves them: even one "
            "whose probabilities are right draws some at steps where none comes."
        )
    else:
        found_best = f"The best cut-off on these episodes: {_num(best.cut_off)}, F1 {_num(best.f1)}."
        hint = found_best if best.f1 else best.note
    return Section(
        "termination",
        "Ends by horizon",
        verdict,
        ["steps ahead", "real ends", "recall", "dreamed ends", "precision", "most likely: recall", "precision"],
        [
            [
                f"{low + 1} to {h.steps}",
                str(h.num_ends),
                _share(h.sampled.end_recall),
                str(h.sampled.num_ends),
                _share(h.sampled.end_precision),
                _share(h.likely.end_recall),
                _share(h.likely.end_precision),
            ]
            for low, h in zip([0, *(h.steps for h in loop.horizons)], loop.horizons)
        ],
        plot_ends(loop) if any(h.num_ends or h.sampled.num_ends for h in loop.horizons) else None,
        f"The dream's first end counts, {_count(loop.tolerance, 'step')} early or late being no matter. {hint}",
    )


def _reliability(found: Fidelity) -> Section:
    r = found.reliability
    skill = 1 - r.brier / r.brier_base if r.brier_base else None
    verdict = (
        f"The probability of an end is off by {_num(r.ece)} on average; its squared error is {_num(r.brier)}, "
        f"{_share(skill)} less than that of always saying the share of ends."
        if skill is not None and skill >= 0
        else f"The probability of an end is off by {_num(r.ece)} on average; its squared error is {_num(r.brier)}, "
        f"no better than always saying the share of ends ({_num(r.brier_base)})."
    )
    return Section(
        "calibration",
        "Calibration of the end",
        verdict,
        ["foreseen", "steps", "mean foreseen", "came"],
        [[f"{b.low:g} to {b.high:g}", f"{b.steps:,}", _num(b.said), _num(b.came)] for b in r.bins],
        plot_reliability(r),
        "All real steps, one step ahead. "
        + (
            "Ends are drawn with just these probabilities."
            if r.drawn
            else "Models that weigh rare ends more in training say too high a probability on purpose: the cut-off "
            "takes care of that."
        ),
    )


def _gap(found: Fidelity) -> Section:
    title, gap = "Return in the dream and for real", found.gap
    if gap is None:
        return Section("gap", title, "The model carries no policy, so there is no return to compare.")
    wide = math.hypot(gap.real_ci95 or 0.0, gap.dream_ci95 or 0.0)
    if gap.real_episodes < 3:
        weigh = f"with {_count(gap.real_episodes, 'real episode')} no more than a hint"
    elif abs(gap.gap) < 0.01 * abs(gap.real):
        weigh = "less than a hundredth"
    else:
        weigh = "no more than chance would give" if abs(gap.gap) <= wide else "more than chance would give"
    return Section(
        "gap",
        title,
        f"The dream promises {gap.dream:.1f} ± {_num(gap.dream_ci95)}, "
        f"reality pays {gap.real:.1f} ± {_num(gap.real_ci95)}: a gap of {gap.gap:+.1f}, {weigh}.",
        ["steps from a real moment", "windows", "real", "dream", "correlation"],
        [[str(c.steps), f"{c.windows:,}", _num(c.real), _num(c.dream), _num(c.corr)] for c in found.closed_loop],
        plot_closed_loop(found.closed_loop) if found.closed_loop else None,
        f"The saved policy over {_count(gap.real_episodes, 'real episode')}, dreams of {_count(gap.horizon, 'step')}; "
        "± is the 95 % interval of the mean. In the table it goes on, in the dream, from real moments of its own "
        "episodes: what both earn from there shows when the gap opens.",
    )


def _ranking(found: Fidelity) -> Section:
    r = found.ranking
    if r.spearman is None:
        verdict = "There are too few policies, or none differs from the others, so there is no order to compare."
    else:
        word = "well" if r.spearman >= 0.8 else "roughly" if r.spearman >= 0.5 else "badly"
        verdict = f"The dream orders {len(r.policies)} policies {word}: rank correlation {_num(r.spearman)}."
    return Section(
        "ranking",
        "Order of policies",
        verdict,
        ["policy", "real", "± 95 %", "dream", "± 95 %"],
        [
            [f"{i}. {p.name}", f"{p.real_mean:.1f}", _num(p.real_ci95), f"{p.dream_mean:.1f}", _num(p.dream_ci95)]
            for i, p in enumerate(r.by_real, 1)
        ],
        plot_ranking(r) if r.policies else None,
        f"Linear correlation: {_num(r.pearson)}.",
    )


def _temperatures(found: Fidelity) -> Section:
    title, rows = "Temperature", found.temperatures
    if not rows:
        return Section("temperature", title, "The model carries no policy, so no temperature was tried.")
    high, low = max(rows, key=lambda r: r.dream), min(rows, key=lambda r: r.dream)
    verdict = (
        f"The saved policy earns from {low.dream:.1f} (tau {low.tau}) to {high.dream:.1f} (tau {high.tau}) in dreams."
    )
    trained = [r for r in rows if r.trained_real is not None]
    if trained:
        best = max(trained, key=lambda r: r.trained_real or 0.0)
        verdict += f" Of those trained at one tau, that of {best.tau} earns most for real: {best.trained_real:.1f}."
    real = f"{found.gap.real:.1f}" if found.gap else "–"
    return Section(
        "temperature",
        title,
        verdict,
        [
            "tau",
            "saved policy: dream",
            "std",
            "saved policy: real",
            "trained at this tau: dream",
            "trained at this tau: real",
            "± 95 %",
        ],
        [
            [
                f"{r.tau:g}",
                f"{r.dream:.1f}",
                f"{r.dream_std:.1f}",
                real,
                _num(r.trained_dream),
                _num(r.trained_real),
                _num(r.trained_real_ci95),
            ]
            for r in rows
        ],
        plot_temperatures(rows, found.gap.real if found.gap else None),
        "What the saved policy earns for real does not depend on the temperature it is dreamed at. The last columns "
        "are Ha & Schmidhuber's table: a controller evolved from zero at that tau (`--train_temperatures`), in dreams "
        "of that tau and for real.",
    )


def _history(found: Fidelity) -> Section:
    title, history = "Gap along training", found.history
    if history is None:
        return Section("training", title, "No judged round is known of (`--run DIR` names a run folder).")
    gaps = [r.dream - r.real for r in history.rounds]
    over = sum(gap > 0 for gap in gaps)
    verdict = (
        f"{over} of {_count(len(gaps), 'time')} the dream promised more than reality gave; "
        f"the last gap is {gaps[-1]:+.1f}."
    )
    ends = ""
    if history.final_dream is not None and history.final_real is not None:
        ends = (
            f" At the end of the run the chosen controller had {history.final_dream:.1f} in dreams of full length and "
            f"{history.final_real:.1f} for real."
        )
    span = "" if history.horizon is None else f"of {_count(history.horizon, 'step')} (as last configured) "
    return Section(
        "training",
        title,
        verdict,
        ["round or generation", "real steps so far", "dream", "real", "std", "dream - real"],
        [
            [
                str(r.round),
                "–" if r.real_steps is None else f"{r.real_steps:,}",
                f"{r.dream:.1f}",
                f"{r.real:.1f}",
                _num(r.real_std),
                f"{gap:+.1f}",
            ]
            for r, gap in zip(history.rounds, gaps)
        ],
        plot_history(history),
        f"Dream: mean return of what trained last, CMA-ES's population or PPO with its noise, in dreams {span}that "
        "start anywhere; real: whole episodes of what came of it, the population's mean or PPO without noise. The two "
        f"differ for more than one reason: their course says more than their level.{ends}",
    )


def _doubt(found: Fidelity) -> Section:
    title, rows = "Disagreement", found.open_loop.horizons
    known = [h for h in rows if h.likely.doubt_corr is not None]
    if not known:
        return Section("disagreement", title, "A single model: there is no ensemble to disagree.")
    first = known[0]
    return Section(
        "disagreement",
        title,
        f"{_ahead(first)} the members' disagreement ranks the errors with {_num(first.likely.doubt_corr)} "
        "(1: just as they are, 0: not at all).",
        ["steps ahead", "rank correlation, most likely", "drawn"],
        [[str(h.steps), _num(h.likely.doubt_corr), _num(h.sampled.doubt_corr)] for h in rows],
        plot_doubt(found.open_loop),
    )


def _seeds(found: Fidelity) -> Section:
    d = found.determinism
    same = "gives the same dream, bit for bit" if d.repeats else "does NOT give the same dream"
    alone = "is" if d.rows_alone else "is NOT"
    return Section(
        "determinism",
        "Seeds",
        f"The same seed {same}; row i seeded s {alone} the single dream seeded s + i "
        f"(largest difference {d.worst:.1e}).",
    )


def _ahead(row: Ahead) -> str:
    return f"{'One step' if row.steps == 1 else f'{row.steps} steps'} ahead"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _num(value: float | None) -> str:
    """Three digits, and no exponent for what is not small."""
    if value is None:
        return "–"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
